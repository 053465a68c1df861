//! Keys that sign tokens: from PEM, from a JSON Web Key Set (RFC 7517), from a file with a secret.
//!
//! A key is for one algorithm, and a token whose header names another is never tried on it: so a public key cannot be
//! taken for a secret (RFC 8725 section 2.1), and `none` has no key at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use serde::Deserialize;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::Refused;
use super::verified::{Fingerprint, VerifiedTokens};
use crate::config::AdmissionKnobs;

/// Most keys at one time. A set that is larger is refused as a whole.
pub const KEYS_MAX: usize = 64;
/// Keys on which one token is tried: of those without a name, and where the token names none.
const KEYS_TRIED_MAX: usize = 8;
/// Shortest secret, in bytes (RFC 7518 section 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// Shortest RSA modulus, in bits (RFC 7518 section 3.3), and the longest whose check stays cheap.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Largest file or answer with keys, in bytes.
pub const KEYS_BYTES_MAX: usize = 256 * 1024;

/// How tokens may be signed. Nothing else is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// From the name in a token's header (RFC 7518 section 3.1, RFC 8037); upper and lower case count.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "HS256" => Some(Self::Hs256),
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

#[derive(Clone)]
enum Material {
    Secret(Arc<hmac::Key>),
    Public(ParsedPublicKey),
}

/// One key.
#[derive(Clone)]
pub struct Key {
    algorithm: Algorithm,
    /// Its name; tokens without one, and keys without one, fit any.
    id: Option<String>,
    material: Material,
}

impl Key {
    fn secret(bytes: &[u8], id: Option<String>) -> Result<Self, String> {
        if bytes.len() < SECRET_BYTES_MIN {
            return Err(format!(
                "has a secret of {} bytes; HS256 needs {SECRET_BYTES_MIN}",
                bytes.len()
            ));
        }
        let material = Material::Secret(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, bytes)));
        Ok(Self { algorithm: Algorithm::Hs256, id, material })
    }

    /// From a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
    fn public(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, String> {
        let algorithm = match info.parsed() {
            Ok(PublicKey::RSA(key)) => {
                rsa_bits_fit(key.key_size())?;
                Algorithm::Rs256
            }
            Ok(PublicKey::EC(_)) => Algorithm::Es256,
            _ if info.algorithm.algorithm.to_id_string() == ED25519_OID => Algorithm::EdDsa,
            _ => return Err("has a key that is neither RSA, nor EC on P-256, nor Ed25519".into()),
        };
        Self::parsed(algorithm, info.raw, None)
    }

    fn parsed(algorithm: Algorithm, bytes: &[u8], id: Option<String>) -> Result<Self, String> {
        let parsed = match algorithm {
            Algorithm::Rs256 => ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, bytes),
            Algorithm::Es256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, bytes),
            Algorithm::EdDsa => ParsedPublicKey::new(&ED25519, bytes),
            Algorithm::Hs256 => return Err("has a secret where a public key belongs".into()),
        };
        let key = parsed.map_err(|_| format!("has a key that is not good for {algorithm:?}"))?;
        Ok(Self { algorithm, id, material: Material::Public(key) })
    }

    /// Whether this key has signed `message`. `signature` is as RFC 7515 has it, decoded.
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }

    /// Whether both are the same key by the same name.
    fn is_same(&self, other: &Self) -> bool {
        match (&self.material, &other.material) {
            (Material::Public(a), Material::Public(b)) => {
                self.algorithm == other.algorithm && self.id == other.id && a.as_ref() == b.as_ref()
            }
            // Secrets cannot be looked at; such sets come from files, and a file is read seldom.
            _ => false,
        }
    }
}

const ED25519_OID: &str = "1.3.101.112";

fn rsa_bits_fit(bits: usize) -> Result<(), String> {
    if RSA_BITS.contains(&bits) {
        Ok(())
    } else {
        let (min, max) = (RSA_BITS.start(), RSA_BITS.end());
        Err(format!("has an RSA key of {bits} bits; allowed are {min} to {max}"))
    }
}

/// All keys of one moment, and the tokens that were found to be signed by one of them.
pub struct KeySet {
    keys: Vec<Key>,
    verified: Option<VerifiedTokens>,
}

impl KeySet {
    /// These keys.
    #[must_use]
    pub fn new(keys: Vec<Key>) -> Self {
        // A secret is checked as fast as it is looked up.
        let slow = keys.iter().any(|key| matches!(key.material, Material::Public(_)));
        Self { keys, verified: slow.then(VerifiedTokens::new) }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether it holds the same keys.
    #[must_use]
    pub fn is_same(&self, keys: &[Key]) -> bool {
        self.keys.len() == keys.len() && self.keys.iter().zip(keys).all(|(a, b)| a.is_same(b))
    }

    /// Checks that one of the keys has signed `token`. `algorithm` and `id` are what its header says.
    ///
    /// # Errors
    /// [`Refused::UnknownKey`] when it names a key that none of them is, [`Refused::Algorithm`] when no key is for that
    /// algorithm, [`Refused::Signature`] when the key did not sign it.
    pub(super) fn verify(
        &self,
        token: &str,
        message: &str,
        signature: &[u8],
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> Result<(), Refused> {
        let named = |key: &&Key| matches!((&key.id, id), (Some(own), Some(id)) if own == id);
        let nameless = |key: &&Key| key.id.is_none() || id.is_none();
        let is_known = self.keys.iter().any(|key| named(&key));
        // A name that none of them has may be that of a key which was published since, for whatever algorithm.
        let unknown = if is_known || id.is_none() { None } else { Some(Refused::UnknownKey) };
        let mut fit = self.keys.iter().filter(|key| key.algorithm == algorithm).peekable();
        if fit.peek().is_none() {
            return Err(unknown.unwrap_or(Refused::Algorithm));
        }
        let fingerprint = self.verified.as_ref().map(|verified| (verified, Fingerprint::of(token)));
        if fingerprint.as_ref().is_some_and(|(verified, print)| verified.contains(*print)) {
            return Ok(());
        }
        let mut tried = fit
            .filter(|key| if is_known { named(key) } else { nameless(key) })
            .take(KEYS_TRIED_MAX);
        if tried.any(|key| key.verifies(message.as_bytes(), signature)) {
            if let Some((verified, print)) = fingerprint {
                verified.insert(print);
            }
            return Ok(());
        }
        Err(unknown.unwrap_or(Refused::Signature))
    }
}

/// The keys of all files that the knobs name.
///
/// # Errors
/// A sentence that names the knob and the file.
pub fn from_files(knobs: &AdmissionKnobs) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    let mut add = |knob: &str, path: &Path, read: fn(&[u8]) -> Result<Vec<Key>, String>| {
        let shown = path.display();
        let bytes = std::fs::read(path)
            .map_err(|error| format!("{knob}: {shown} cannot be read: {error}"))?;
        keys.extend(read(&bytes).map_err(|fault| format!("{knob}: {shown} {fault}"))?);
        if keys.len() > KEYS_MAX {
            return Err(format!("{knob}: {shown} makes it more than {KEYS_MAX} keys"));
        }
        Ok(())
    };
    let paths = |paths: &[PathBuf]| paths.to_vec();
    for path in paths(&knobs.jwt_hs256_key_file) {
        add("--jwt-hs256-key-file", &path, |bytes| {
            Key::secret(without_line_end(bytes), None).map(|key| vec![key])
        })?;
    }
    for path in paths(&knobs.jwt_key_file) {
        add("--jwt-key-file", &path, from_pem)?;
    }
    if let Some(path) = &knobs.jwt_jwks_file {
        add("--jwt-jwks-file", path, |bytes| from_jwks(bytes, Secrets::Taken))?;
    }
    Ok(keys)
}

/// A secret that a person wrote with an editor ends in a line end that is not meant; random bytes are left alone.
fn without_line_end(bytes: &[u8]) -> &[u8] {
    let text = bytes.strip_suffix(b"\n").map(|text| text.strip_suffix(b"\r").unwrap_or(text));
    text.filter(|text| text.iter().all(u8::is_ascii_graphic)).unwrap_or(bytes)
}

fn from_pem(bytes: &[u8]) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
        let (kind, der) = section.map_err(|error| format!("is not PEM: {error}"))?;
        let broken = |_| "has a section that is cut or broken".to_owned();
        match kind {
            SectionKind::PublicKey => {
                let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(broken)?;
                keys.push(Key::public(&info)?);
            }
            SectionKind::Certificate => {
                let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(broken)?;
                keys.push(Key::public(certificate.public_key())?);
            }
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err(
                    "holds a private key, which belongs to the issuer alone; give the public one"
                        .into(),
                );
            }
            SectionKind::Crl | SectionKind::Csr | SectionKind::EchConfigList | _ => {}
        }
    }
    if keys.is_empty() {
        return Err("holds no public key in PEM (BEGIN PUBLIC KEY, or BEGIN CERTIFICATE)".into());
    }
    Ok(keys)
}

/// Whether a set may hold secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    /// A file of ours may.
    Taken,
    /// A secret that is published is none; the set is refused.
    Refused,
}

/// The keys of a JSON Web Key Set. Keys for other uses and of kinds that are not taken are passed over.
///
/// # Errors
/// What is wrong, worded to go on after the name of the file: no such set, not one key that can be used, too many of them.
pub fn from_jwks(bytes: &[u8], secrets: Secrets) -> Result<Vec<Key>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }

    if bytes.len() > KEYS_BYTES_MAX {
        return Err(format!("is larger than {KEYS_BYTES_MAX} bytes"));
    }
    let set: Set = serde_json::from_slice(bytes)
        .map_err(|error| format!("is not a JSON Web Key Set: {error}"))?;
    if set.keys.len() > KEYS_MAX {
        return Err(format!("has {} keys; allowed are {KEYS_MAX}", set.keys.len()));
    }
    let mut keys = Vec::new();
    for value in set.keys {
        // A kind of key that nobody here knows is passed over (RFC 7517 section 5).
        let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { continue };
        if let Some(key) = from_jwk(&jwk, secrets)? {
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return Err("has no key for RS256, ES256, EdDSA or HS256 in it".into());
    }
    Ok(keys)
}

fn from_jwk(jwk: &Jwk, secrets: Secrets) -> Result<Option<Key>, String> {
    let common = &jwk.common;
    let for_signatures =
        common.public_key_use.as_ref().is_none_or(|r#use| *r#use == PublicKeyUse::Signature);
    let for_checking = common
        .key_operations
        .as_ref()
        .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !for_signatures || !for_checking {
        return Ok(None);
    }
    let id = common.key_id.clone();
    let is_for = |algorithm| common.key_algorithm.is_none_or(|own| own == algorithm);
    let decode = |text: &str| {
        URL_SAFE_NO_PAD.decode(text).map_err(|_| "has a key that is not in base64url".to_owned())
    };
    match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) if is_for(KeyAlgorithm::RS256) => {
            let (n, e) = (decode(&rsa.n)?, decode(&rsa.e)?);
            let n = n.iter().position(|byte| *byte != 0).map_or(&[][..], |at| &n[at..]);
            rsa_bits_fit(n.len() * 8)?;
            let key = PublicKeyComponents { n, e: &e }
                .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
                .map_err(|_| "has an RSA key that is none".to_owned())?;
            Ok(Some(Key { algorithm: Algorithm::Rs256, id, material: Material::Public(key) }))
        }
        AlgorithmParameters::EllipticCurve(ec)
            if ec.curve == EllipticCurve::P256 && is_for(KeyAlgorithm::ES256) =>
        {
            let point = [&[4][..], &decode(&ec.x)?, &decode(&ec.y)?].concat();
            Key::parsed(Algorithm::Es256, &point, id).map(Some)
        }
        AlgorithmParameters::OctetKeyPair(pair)
            if pair.curve == EllipticCurve::Ed25519 && is_for(KeyAlgorithm::EdDSA) =>
        {
            Key::parsed(Algorithm::EdDsa, &decode(&pair.x)?, id).map(Some)
        }
        AlgorithmParameters::OctetKey(_) if secrets == Secrets::Refused => {
            Err("publishes a secret (kty oct): whoever reads it can sign".into())
        }
        AlgorithmParameters::OctetKey(octets) if is_for(KeyAlgorithm::HS256) => {
            Key::secret(&decode(&octets.value)?, id).map(Some)
        }
        AlgorithmParameters::RSA(_)
        | AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKeyPair(_)
        | AlgorithmParameters::OctetKey(_)
        | AlgorithmParameters::Other(_)
        | _ => Ok(None),
    }
}

/// The set that counts at the moment, exchanged as a whole.
pub(super) type CurrentKeys = arc_swap::ArcSwap<KeySet>;

/// A set to begin with.
pub(super) fn current(keys: Vec<Key>) -> CurrentKeys {
    arc_swap::ArcSwap::new(Arc::new(KeySet::new(keys)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::tokens::{Issuer, jwks};

    fn fault(outcome: Result<Vec<Key>, String>) -> String {
        match outcome {
            Err(fault) => fault,
            Ok(keys) => panic!("{} keys", keys.len()),
        }
    }

    #[test]
    fn what_is_wrong_with_a_pem_file_is_told() {
        let private = Issuer::es256().private_pem();
        let cut = Issuer::es256().pem().replacen("END PUBLIC", "END", 1);
        for (pem, told) in [
            ("", "holds no public key"),
            ("secret", "holds no public key"),
            (&private, "holds a private key"),
            (&cut, "is not PEM"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is cut or broken"),
            (&Issuer::es384().pem(), "is not good for Es256"),
        ] {
            let fault = fault(from_pem(pem.as_bytes()));
            assert!(fault.contains(told), "{fault}");
        }
    }

    #[test]
    fn a_set_gives_the_keys_that_can_be_used_and_passes_over_the_rest() {
        let (ec, rsa) = (Issuer::es256().named("a"), Issuer::rs256().named("b"));
        let mut encryption = rsa.jwk();
        encryption["use"] = json!("enc");
        let mut other = rsa.jwk();
        other["alg"] = json!("RS512");
        let mut signing = rsa.jwk();
        signing["key_ops"] = json!(["sign"]);
        let mut plain = ec.jwk();
        plain.as_object_mut().unwrap().remove("alg");
        let set = json!({ "keys": [
            encryption, other, signing, plain, rsa.jwk(), Issuer::es384().jwk(),
            { "kty": "LATTICE", "kid": "c" }, 7,
        ], "more": 1 });
        let keys = from_jwks(set.to_string().as_bytes(), Secrets::Refused).unwrap();
        let named: Vec<_> =
            keys.iter().map(|key| (key.id.as_deref().unwrap(), key.algorithm)).collect();
        assert_eq!(named, [("a", Algorithm::Es256), ("b", Algorithm::Rs256)]);
    }

    #[test]
    fn what_is_wrong_with_a_set_is_told() {
        let short = json!({ "keys": [{ "kty": "RSA", "n": "AQAB", "e": "AQAB" }] });
        let off_curve =
            json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA" }] });
        let many = json!({ "keys": vec![json!({}); KEYS_MAX + 1] });
        let secret = jwks(&[&Issuer::hs256(&[7; 32])]);
        for (set, told) in [
            ("<html>", "is not a JSON Web Key Set"),
            ("[]", "is not a JSON Web Key Set"),
            ("{}", "is not a JSON Web Key Set"),
            (r#"{"keys":[]}"#, "has no key"),
            (&short.to_string(), "has an RSA key of 24 bits"),
            (&off_curve.to_string(), "is not good for Es256"),
            (&many.to_string(), "has 65 keys"),
            (&secret, "publishes a secret"),
            (&" ".repeat(KEYS_BYTES_MAX + 1), "is larger"),
        ] {
            let fault = fault(from_jwks(set.as_bytes(), Secrets::Refused));
            assert!(fault.contains(told), "{fault}");
        }
        assert!(from_jwks(secret.as_bytes(), Secrets::Taken).is_ok());
    }

    #[test]
    fn a_secret_is_long_enough_and_a_line_end_behind_text_is_none_of_it() {
        assert!(Key::secret(&[7; 31], None).is_err_and(|fault| fault.contains("31 bytes")));
        assert_eq!(without_line_end(b"secret\n"), b"secret");
        assert_eq!(without_line_end(b"secret\r\n"), b"secret");
        assert_eq!(without_line_end(b"\x01\x80\n"), b"\x01\x80\n");
        assert_eq!(without_line_end(b"secret"), b"secret");
    }
}
