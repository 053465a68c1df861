//! Issuers of tokens for tests: real keys, signed by `jsonwebtoken` and `rcgen`, which the edge's own check shares
//! nothing with but the primitives. Included by the unit tests and by the tests of processes.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};

/// Somebody who signs tokens.
pub(crate) struct Issuer {
    algorithm: &'static str,
    id: Option<&'static str>,
    signer: Signer,
}

enum Signer {
    Secret(Vec<u8>),
    Pair(KeyPair),
}

impl Issuer {
    pub(crate) fn hs256(secret: &[u8]) -> Self {
        Self { algorithm: "HS256", id: None, signer: Signer::Secret(secret.to_vec()) }
    }

    pub(crate) fn es256() -> Self {
        Self::of("ES256", &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn eddsa() -> Self {
        Self::of("EdDSA", &rcgen::PKCS_ED25519)
    }

    pub(crate) fn rs256() -> Self {
        Self::of("RS256", &rcgen::PKCS_RSA_SHA256)
    }

    /// On a curve that is not taken.
    pub(crate) fn es384() -> Self {
        Self::of("ES384", &rcgen::PKCS_ECDSA_P384_SHA384)
    }

    fn of(algorithm: &'static str, kind: &'static rcgen::SignatureAlgorithm) -> Self {
        let pair = KeyPair::generate_for(kind).expect("a key");
        Self { algorithm, id: None, signer: Signer::Pair(pair) }
    }

    /// The same with a name for its key.
    pub(crate) fn named(self, id: &'static str) -> Self {
        Self { id: Some(id), ..self }
    }

    /// The public key in PEM.
    pub(crate) fn pem(&self) -> String {
        self.pair().public_key_pem()
    }

    /// The private key in PEM.
    pub(crate) fn private_pem(&self) -> String {
        self.pair().serialize_pem()
    }

    fn pair(&self) -> &KeyPair {
        match &self.signer {
            Signer::Pair(pair) => pair,
            Signer::Secret(_) => panic!("a secret has no public part"),
        }
    }

    /// The key as a JSON Web Key.
    pub(crate) fn jwk(&self) -> Value {
        let key = match (&self.signer, self.algorithm) {
            (Signer::Secret(secret), _) => DecodingKey::from_secret(secret),
            (Signer::Pair(pair), "RS256") => DecodingKey::from_rsa_der(pair.der_bytes()),
            (Signer::Pair(pair), "EdDSA") => DecodingKey::from_ed_der(pair.der_bytes()),
            (Signer::Pair(pair), _) => DecodingKey::from_ec_der(pair.der_bytes()),
        };
        let jwk = Jwk::from_decoding_key(&key, None).expect("a key that can be written");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["alg"] = json!(self.algorithm);
        if let Some(id) = self.id {
            jwk["kid"] = json!(id);
        }
        jwk
    }

    /// A token with these claims.
    pub(crate) fn token(&self, claims: &Value) -> String {
        let mut header = json!({ "alg": self.algorithm, "typ": "JWT" });
        if let Some(id) = self.id {
            header["kid"] = json!(id);
        }
        self.sign(&header.to_string(), claims.to_string().as_bytes())
    }

    /// A token with this header, whatever it says, and this body, over which the signature is right.
    pub(crate) fn sign(&self, header: &str, body: &[u8]) -> String {
        let mut token = URL_SAFE_NO_PAD.encode(header);
        let _ = write!(token, ".{}", URL_SAFE_NO_PAD.encode(body));
        let signature = self.signature(token.as_bytes());
        let _ = write!(token, ".{signature}");
        token
    }

    fn signature(&self, message: &[u8]) -> String {
        let by_library = |key: &EncodingKey, algorithm| {
            jsonwebtoken::crypto::sign(message, key, algorithm).expect("a signature")
        };
        match (&self.signer, self.algorithm) {
            (Signer::Secret(secret), _) => {
                by_library(&EncodingKey::from_secret(secret), Algorithm::HS256)
            }
            (Signer::Pair(pair), "ES256") => {
                by_library(&EncodingKey::from_ec_der(&pair.serialize_der()), Algorithm::ES256)
            }
            (Signer::Pair(pair), "ES384") => {
                by_library(&EncodingKey::from_ec_der(&pair.serialize_der()), Algorithm::ES384)
            }
            (Signer::Pair(pair), _) => {
                URL_SAFE_NO_PAD.encode(pair.sign(message).expect("a signature"))
            }
        }
    }
}

/// A JSON Web Key Set of these keys.
pub(crate) fn jwks(issuers: &[&Issuer]) -> String {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() }).to_string()
}
