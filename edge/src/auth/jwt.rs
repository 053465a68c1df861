//! A JSON Web Token (RFC 7519) in its compact form (RFC 7515 section 7.1): signature first, then claims.
//!
//! | claim | meaning |
//! |---|---|
//! | `sub`, or what `--jwt-user-claim` names | user id, 1 to 64 bytes; required |
//! | `exp` | required, unless `--jwt-exp-optional`; the session ends with it |
//! | `nbf` | not good before |
//! | `iss` | one of `--jwt-issuer`, when any is given |
//! | `aud` | has to hold one of `--jwt-audience`; refused when it stands there and none is given (RFC 7519 section 4.1.3) |
//! | `device` | the one device that may use it; absent: any |
//! | `permissions` | of `send:users`, `send:groups`, `signals`; absent: all; others are passed over |
//! | `rate_class` | one of `--rate-classes`; absent or unknown: the class of all others |
//!
//! A claim of these that stands twice refuses the token: two readers could take it for two different things.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_proto::knobs::UsageError;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::keys::{self, Algorithm, CurrentKeys, Key, KeySet};
use super::{DeviceId, Grant, Identity, Refused, user_id};
use crate::config::AdmissionKnobs;

/// Checks tokens against keys; shared by all shards.
pub struct Jwt {
    rules: ArcSwap<Rules>,
    keys: CurrentKeys,
    /// Where they come from; locked by those who exchange them alone, never by a shard.
    sources: Mutex<Sources>,
}

struct Sources {
    files: Vec<Key>,
    /// From `--jwt-jwks-url`; `None` until the first answer.
    fetched: Option<Vec<Key>>,
}

/// What a token has to say to be taken.
struct Rules {
    knobs: AdmissionKnobs,
    skew_ms: i64,
}

impl Jwt {
    /// Reads the files that the knobs name.
    ///
    /// # Errors
    /// A sentence that names the knob and the file.
    pub fn load(knobs: &AdmissionKnobs) -> Result<Self, UsageError> {
        let files = keys::from_files(knobs).map_err(UsageError)?;
        Ok(Self {
            rules: ArcSwap::from_pointee(Rules::new(knobs)),
            keys: keys::current(files.clone()),
            sources: Mutex::new(Sources { files, fetched: None }),
        })
    }

    /// Reads the files again; takes their keys, and what these knobs ask of a token, from now on. What was fetched stays.
    ///
    /// # Errors
    /// A sentence that names the knob and the file; all stays as it was.
    pub fn reload(&self, knobs: &AdmissionKnobs) -> Result<(), UsageError> {
        let files = keys::from_files(knobs).map_err(UsageError)?;
        self.rules.store(Arc::new(Rules::new(knobs)));
        self.exchange(|sources| sources.files = files);
        Ok(())
    }

    /// Takes these keys from `--jwt-jwks-url` from now on.
    pub fn set_fetched(&self, keys: Vec<Key>) {
        self.exchange(|sources| sources.fetched = Some(keys));
    }

    fn exchange(&self, change: impl FnOnce(&mut Sources)) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut sources);
        let fetched = sources.fetched.iter().flatten();
        let keys: Vec<Key> = sources.files.iter().chain(fetched).cloned().collect();
        // The same keys again keep what is known of tokens.
        if !self.keys.load().is_same(&keys) {
            self.keys.store(Arc::new(KeySet::new(keys)));
        }
    }

    /// How long after its expiry a token still counts, in milliseconds.
    #[must_use]
    pub fn skew_ms(&self) -> i64 {
        self.rules.load().skew_ms
    }

    /// Whose token this is. The caller has seen to its length.
    ///
    /// # Errors
    /// [`Refused`], with the sentence for the client.
    pub fn check(&self, unix_ms: i64, token: &str) -> Result<Identity, Refused> {
        let (message, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(Refused::Malformed)?;
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| Refused::Malformed)?;
        // An extension that has to be understood, and is not (RFC 7515 section 4.1.11).
        if header.crit.is_some() {
            return Err(Refused::Malformed);
        }
        let algorithm = Algorithm::from_name(&header.alg).ok_or(Refused::Algorithm)?;
        let signature = decode(signature)?;
        let keys = self.keys.load();
        if keys.is_empty() {
            // There are none yet: only a set that is to be fetched can be missing.
            return Err(Refused::Unavailable);
        }
        keys.verify(token, message, &signature, algorithm, header.kid.as_deref())?;
        let rules = self.rules.load();
        let claims = rules.read(&decode(claims)?)?;
        rules.judge(unix_ms, claims)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, Refused> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed)
}

/// What matters of a header (RFC 7515 section 4.1). Keys that a token brings along (jwk, jku, x5c) are not looked at.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

#[derive(Default)]
struct Claims {
    user: Option<String>,
    device: Option<String>,
    issuer: Option<String>,
    audience: Option<Audience>,
    /// Seconds since the Unix epoch, perhaps with a fraction.
    expires_at: Option<f64>,
    not_before: Option<f64>,
    permissions: Option<Vec<String>>,
    rate_class: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

impl Rules {
    fn new(knobs: &AdmissionKnobs) -> Self {
        let skew_ms = i64::try_from(knobs.jwt_clock_skew.as_millis()).unwrap_or(i64::MAX);
        Self { knobs: knobs.clone(), skew_ms }
    }

    fn read(&self, json: &[u8]) -> Result<Claims, Refused> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let seed = ClaimsSeed { user_claim: &self.knobs.jwt_user_claim };
        let claims = seed.deserialize(&mut deserializer).map_err(|_| Refused::Claims)?;
        deserializer.end().map_err(|_| Refused::Claims)?;
        Ok(claims)
    }

    fn judge(&self, unix_ms: i64, claims: Claims) -> Result<Identity, Refused> {
        let expires_at_ms = claims.expires_at.map(to_ms);
        if expires_at_ms.is_none() && !self.knobs.jwt_exp_optional {
            return Err(Refused::Claims);
        }
        if expires_at_ms.is_some_and(|at| at.saturating_add(self.skew_ms) <= unix_ms) {
            return Err(Refused::Expired);
        }
        if claims.not_before.is_some_and(|at| to_ms(at) > unix_ms.saturating_add(self.skew_ms)) {
            return Err(Refused::NotYetValid);
        }
        let issuers = &self.knobs.jwt_issuer;
        if !issuers.is_empty() && claims.issuer.is_none_or(|issuer| !issuers.contains(&issuer)) {
            return Err(Refused::Issuer);
        }
        self.judge_audience(claims.audience.as_ref())?;
        let user = user_id(&claims.user.ok_or(Refused::Claims)?)?;
        let device = match claims.device {
            Some(device) => Some(DeviceId::from(&device).map_err(|_| Refused::Claims)?),
            None => None,
        };
        let rate_class = claims.rate_class.map_or(0, |name| self.knobs.rate_class(&name));
        let permissions = claims.permissions.as_ref().map(|names| names.iter().map(String::as_str));
        Ok(Identity { user, device, expires_at_ms, grant: Grant::new(permissions, rate_class) })
    }

    fn judge_audience(&self, audience: Option<&Audience>) -> Result<(), Refused> {
        let ours = &self.knobs.jwt_audience;
        let is_meant = match audience {
            None => ours.is_empty(),
            Some(audience) => audience.names().iter().any(|name| ours.contains(name)),
        };
        if is_meant { Ok(()) } else { Err(Refused::Audience) }
    }
}

/// A NumericDate (RFC 7519 section 2) in milliseconds; what is out of reach becomes the end of time on its side.
fn to_ms(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

/// Reads [`Claims`] from an object in which the user's claim has any name.
struct ClaimsSeed<'a> {
    user_claim: &'a str,
}

impl<'de> DeserializeSeed<'de> for ClaimsSeed<'_> {
    type Value = Claims;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Claims, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ClaimsSeed<'_> {
    type Value = Claims;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
        let mut claims = Claims::default();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match &*name {
                name if name == self.user_claim => set(&mut claims.user, &mut map)?,
                "device" => set(&mut claims.device, &mut map)?,
                "iss" => set(&mut claims.issuer, &mut map)?,
                "aud" => set(&mut claims.audience, &mut map)?,
                "exp" => set(&mut claims.expires_at, &mut map)?,
                "nbf" => set(&mut claims.not_before, &mut map)?,
                "permissions" => set(&mut claims.permissions, &mut map)?,
                "rate_class" => set(&mut claims.rate_class, &mut map)?,
                _ => {
                    let _: IgnoredAny = map.next_value()?;
                }
            }
        }
        Ok(claims)
    }
}

fn set<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    claim: &mut Option<T>,
    map: &mut A,
) -> Result<(), A::Error> {
    match claim.replace(map.next_value()?) {
        None => Ok(()),
        Some(_) => Err(A::Error::custom("a claim stands twice")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::tokens::{Issuer, jwks};
    use crate::auth::{Auth, Checked, Permission, Way};
    use crate::config::Config;

    /// What time it is in these tests, in seconds since the Unix epoch.
    const NOW: i64 = 1_790_000_000;

    /// An edge that was given these files of keys and these flags.
    struct Door {
        auth: Auth,
    }

    impl Door {
        fn with(files: &[(&str, &str)], flags: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut args = vec!["hawser-edge".to_owned()];
            for (at, (flag, text)) in files.iter().enumerate() {
                let path = folder.path().join(at.to_string());
                std::fs::write(&path, text).unwrap();
                args.push(format!("{flag}={}", path.display()));
            }
            args.extend(flags.iter().map(|flag| flag.to_string()));
            let config = Config::read(args.into_iter().map(Into::into), []).unwrap();
            Self { auth: Auth::load(&config).unwrap().0 }
        }

        fn of(issuer: &Issuer) -> Self {
            Self::with(&[("--jwt-key-file", &issuer.pem())], &[])
        }

        fn check(&self, token: &str) -> Result<Identity, Refused> {
            match self.auth.check(NOW * 1000, token) {
                Checked::Now(checked) => checked,
                Checked::Ask => panic!("nobody is to be asked"),
            }
        }

        fn jwt(&self) -> &Jwt {
            match &self.auth.way {
                Way::Jwt(jwt) => jwt,
                Way::Dev | Way::Owner => panic!("there are keys"),
            }
        }

        /// How claims fare whose signature is right.
        fn judges(&self, issuer: &Issuer, claims: &Value) -> Result<Identity, Refused> {
            self.check(&issuer.token(claims))
        }
    }

    fn good() -> Value {
        json!({ "sub": "alice", "exp": NOW + 600 })
    }

    fn with(name: &str, value: impl Into<Value>) -> Value {
        let mut claims = good();
        claims[name] = value.into();
        claims
    }

    fn refused(outcome: Result<Identity, Refused>) -> Option<Refused> {
        outcome.err()
    }

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_token_of_each_kind_is_taken_from_each_kind_of_file() {
        let pairs = [Issuer::rs256(), Issuer::es256(), Issuer::eddsa()];
        for issuer in &pairs {
            assert_eq!(Door::of(issuer).judges(issuer, &good()).unwrap().user.as_str(), "alice");
        }
        let secret = Issuer::hs256(SECRET.as_bytes());
        let line = format!("{SECRET}\r\n");
        let door = Door::with(&[("--jwt-hs256-key-file", &line)], &[]);
        assert!(door.judges(&secret, &good()).is_ok());

        let all: String = pairs.iter().map(Issuer::pem).collect();
        let door = Door::with(&[("--jwt-key-file", &all)], &[]);
        let refs: Vec<&Issuer> = pairs.iter().chain([&secret]).collect();
        let set = Door::with(&[("--jwt-jwks-file", &jwks(&refs))], &[]);
        for issuer in &refs {
            assert!(set.judges(issuer, &good()).is_ok());
        }
        for issuer in &pairs {
            assert!(door.judges(issuer, &good()).is_ok());
        }
    }

    #[test]
    fn a_certificate_stands_for_its_key() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
        Door::with(&[("--jwt-key-file", &certificate.pem())], &[]);
    }

    #[test]
    fn a_claim_becomes_what_it_means() {
        let issuer = Issuer::eddsa();
        let door = Door::with(
            &[("--jwt-key-file", &issuer.pem())],
            &["--rate-classes=bot,staff", "--jwt-user-claim=uid"],
        );
        let claims = json!({
            "uid": "κ", "sub": "other", "device": "phone", "exp": NOW as f64 + 0.5, "nbf": NOW,
            "permissions": ["send:users", "read:messages"], "rate_class": "staff", "more": {"a": [1]},
        });
        let identity = door.judges(&issuer, &claims).unwrap();
        assert_eq!((&*identity.user, identity.expires_at_ms), ("κ", Some(NOW * 1000 + 500)));
        assert!(identity.fits_device("phone") && !identity.fits_device("tablet"));
        let allowed = [Permission::SendUsers, Permission::SendGroups, Permission::Signals]
            .map(|permission| identity.grant.allows(permission));
        assert_eq!((allowed, identity.grant.rate_class()), ([true, false, false], 2));

        let plain = Door::of(&issuer).judges(&issuer, &good()).unwrap();
        assert_eq!((plain.grant, plain.device), (Grant::ALL, None));
    }

    #[test]
    fn times_are_judged_with_what_clocks_may_differ_by() {
        let issuer = Issuer::eddsa();
        let door = Door::of(&issuer);
        for (claims, expected) in [
            (with("exp", NOW - 29), None),
            (with("exp", NOW - 30), Some(Refused::Expired)),
            (with("exp", 0), Some(Refused::Expired)),
            (with("exp", -1e300), Some(Refused::Expired)),
            (with("exp", 1e300), None),
            (with("nbf", NOW + 30), None),
            (with("nbf", NOW + 31), Some(Refused::NotYetValid)),
            (with("exp", "1790000600"), Some(Refused::Claims)),
            (with("exp", Value::Null), Some(Refused::Claims)),
            (json!({ "sub": "alice" }), Some(Refused::Claims)),
        ] {
            assert_eq!(refused(door.judges(&issuer, &claims)), expected, "{claims}");
        }
        let lenient = Door::with(&[("--jwt-key-file", &issuer.pem())], &["--jwt-exp-optional"]);
        let identity = lenient.judges(&issuer, &json!({ "sub": "alice" })).unwrap();
        assert_eq!(identity.expires_at_ms, None);
        assert_eq!(refused(lenient.judges(&issuer, &with("exp", 1))), Some(Refused::Expired));
    }

    #[test]
    fn issuer_and_audience_are_asked_for_and_a_token_for_others_is_refused_in_any_case() {
        let issuer = Issuer::eddsa();
        let open = Door::of(&issuer);
        assert_eq!(refused(open.judges(&issuer, &with("iss", "anybody"))), None);
        assert_eq!(refused(open.judges(&issuer, &with("aud", "others"))), Some(Refused::Audience));
        let flags = ["--jwt-issuer=us", "--jwt-issuer=them", "--jwt-audience=chat"];
        let strict = Door::with(&[("--jwt-key-file", &issuer.pem())], &flags);
        let claims = |iss: Value, aud: Value| {
            let mut claims = with("iss", iss);
            claims["aud"] = aud;
            claims
        };
        for (claims, expected) in [
            (claims("us".into(), "chat".into()), None),
            (claims("them".into(), json!(["shop", "chat"])), None),
            (claims("else".into(), "chat".into()), Some(Refused::Issuer)),
            (claims("us".into(), "shop".into()), Some(Refused::Audience)),
            (claims("us".into(), json!([])), Some(Refused::Audience)),
            (claims("us".into(), json!([1])), Some(Refused::Claims)),
            (claims(json!(["us"]), "chat".into()), Some(Refused::Claims)),
            (with("iss", "us"), Some(Refused::Audience)),
            (with("aud", "chat"), Some(Refused::Issuer)),
        ] {
            assert_eq!(refused(strict.judges(&issuer, &claims)), expected, "{claims}");
        }
    }

    #[test]
    fn a_user_is_named_within_its_bound() {
        let issuer = Issuer::eddsa();
        let door = Door::of(&issuer);
        for (user, expected) in [
            (Value::from("a".repeat(64)), None),
            ("a".repeat(65).into(), Some(Refused::User)),
            ("".into(), Some(Refused::User)),
            ("a\u{0}b".into(), Some(Refused::User)),
            (7.into(), Some(Refused::Claims)),
            (Value::Null, Some(Refused::Claims)),
        ] {
            assert_eq!(
                refused(door.judges(&issuer, &with("sub", user.clone()))),
                expected,
                "{user}"
            );
        }
        let long = with("device", "d".repeat(41));
        assert_eq!(refused(door.judges(&issuer, &long)), Some(Refused::Claims));
    }

    #[test]
    fn the_key_says_how_a_token_is_signed_and_nothing_else() {
        let issuer = Issuer::rs256();
        let door = Door::of(&issuer);
        let body = good().to_string();
        // The public key, known to all, as the secret of an HMAC (RFC 8725 section 2.1).
        for secret in [issuer.pem(), issuer.pem().trim_end().to_owned()] {
            let forged = Issuer::hs256(secret.as_bytes());
            assert_eq!(refused(door.judges(&forged, &good())), Some(Refused::Algorithm));
            let lying = forged.sign(r#"{"alg":"RS256"}"#, body.as_bytes());
            assert_eq!(refused(door.check(&lying)), Some(Refused::Signature));
        }
        for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "ES256", "RS384", "PS256", "rs256"]
        {
            let header = json!({ "alg": alg }).to_string();
            let token = issuer.sign(&header, body.as_bytes());
            assert_eq!(refused(door.check(&token)), Some(Refused::Algorithm), "{alg}");
            let unsigned = token.rsplit_once('.').unwrap().0.to_owned() + ".";
            assert_eq!(refused(door.check(&unsigned)), Some(Refused::Algorithm), "{alg}");
        }
        let unsigned = issuer.token(&good()).rsplit_once('.').unwrap().0.to_owned() + ".";
        assert_eq!(refused(door.check(&unsigned)), Some(Refused::Signature));
    }

    #[test]
    fn a_forged_token_is_refused_wherever_a_bit_of_it_is_changed() {
        for issuer in [Issuer::es256(), Issuer::eddsa(), Issuer::rs256()] {
            let door = Door::of(&issuer);
            let token = issuer.token(&good());
            assert!(door.check(&token).is_ok());
            for at in 0..token.len() {
                let mut bytes = token.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
                let forged = String::from_utf8(bytes).unwrap();
                assert!(door.check(&forged).is_err(), "changed at {at}");
            }
            assert!(door.check(&token).is_ok());
        }
        let (right, wrong) = (Issuer::es256(), Issuer::es256());
        assert_eq!(refused(Door::of(&right).judges(&wrong, &good())), Some(Refused::Signature));
    }

    #[test]
    fn a_key_that_comes_with_the_token_or_a_header_that_has_to_be_understood_helps_nobody() {
        let (issuer, other) = (Issuer::es256(), Issuer::es256());
        let door = Door::of(&issuer);
        let body = good().to_string();
        let header = json!({ "alg": "ES256", "jwk": other.jwk(), "jku": "https://evil.example" });
        let token = other.sign(&header.to_string(), body.as_bytes());
        assert_eq!(refused(door.check(&token)), Some(Refused::Signature));
        for header in [
            r#"{"alg":"ES256","crit":["exp"],"exp":1}"#,
            r#"{"alg":"ES256","crit":["b64"],"b64":false}"#,
            r#"{"alg":"ES256","alg":"ES256"}"#,
            r#"{"typ":"JWT"}"#,
            r#"["ES256"]"#,
            "ES256",
            "",
        ] {
            let token = issuer.sign(header, body.as_bytes());
            assert_eq!(refused(door.check(&token)), Some(Refused::Malformed), "{header}");
        }
    }

    #[test]
    fn a_name_picks_the_key_and_an_unknown_name_is_told() {
        let (old, new) = (Issuer::es256().named("old"), Issuer::es256().named("new"));
        let door = Door::with(&[("--jwt-jwks-file", &jwks(&[&old, &new]))], &[]);
        assert!(door.judges(&old, &good()).is_ok() && door.judges(&new, &good()).is_ok());
        for unknown in [Issuer::es256().named("newer"), Issuer::eddsa().named("newer")] {
            assert_eq!(refused(door.judges(&unknown, &good())), Some(Refused::UnknownKey));
        }
        let of_another_kind = Issuer::eddsa().named("new");
        assert_eq!(refused(door.judges(&of_another_kind, &good())), Some(Refused::Algorithm));
        // By the name of another.
        let token = new.sign(r#"{"alg":"ES256","kid":"old"}"#, good().to_string().as_bytes());
        assert_eq!(refused(door.check(&token)), Some(Refused::Signature));
        let nameless = new.sign(r#"{"alg":"ES256"}"#, good().to_string().as_bytes());
        assert!(door.check(&nameless).is_ok());
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let issuer = Issuer::es256();
        let door = Door::of(&issuer);
        let token = issuer.token(&good());
        let padded = token.clone() + "=";
        let spaced = token.replacen('.', ". ", 1);
        for garbage in
            ["", ".", "..", "a.b.c", "a.b", "....", "\u{0}", &padded, &spaced, &token[1..]]
        {
            let outcome = refused(door.check(garbage));
            let expected = match garbage {
                "" => Refused::Missing,
                // The signature is over other bytes, and is looked at before the claims.
                _ if garbage == spaced => Refused::Signature,
                _ => Refused::Malformed,
            };
            assert_eq!(outcome, Some(expected), "{garbage}");
        }
        let deep = [&b"["[..]; 10_000].concat();
        let objects = [&br#"{"a":"#[..]; 5_000].concat();
        let jwt = door.jwt();
        for body in [&deep, &objects, &b"null"[..].to_vec(), &b"{}x".to_vec(), &b"\xff".to_vec()] {
            let token = issuer.sign(r#"{"alg":"ES256"}"#, body);
            // Past the bound on length, which would refuse it first.
            assert_eq!(refused(jwt.check(NOW * 1000, &token)), Some(Refused::Claims));
        }
        let header = format!(r#"{{"alg":"ES256","x":{}"#, "[".repeat(10_000));
        let token = issuer.sign(&header, good().to_string().as_bytes());
        assert_eq!(refused(jwt.check(NOW * 1000, &token)), Some(Refused::Malformed));
        let long = issuer.token(&with("x", "x".repeat(4096)));
        assert_eq!(refused(door.check(&long)), Some(Refused::TooLong));
    }

    #[test]
    fn a_claim_that_stands_twice_refuses_the_token() {
        let issuer = Issuer::es256();
        let door = Door::of(&issuer);
        let check =
            |body: &str| refused(door.check(&issuer.sign(r#"{"alg":"ES256"}"#, body.as_bytes())));
        let exp = NOW + 600;
        assert_eq!(check(&format!(r#"{{"sub":"a","exp":{exp},"x":1,"x":2}}"#)), None);
        for twice in [
            format!(r#"{{"sub":"a","sub":"b","exp":{exp}}}"#),
            format!(r#"{{"sub":"a","exp":1,"exp":{exp}}}"#),
            format!(r#"{{"sub":"a","exp":{exp},"permissions":[],"permissions":["signals"]}}"#),
            format!(r#"{{"sub":"a","exp":{exp},"s\u0075b":"b"}}"#),
        ] {
            assert_eq!(check(&twice), Some(Refused::Claims), "{twice}");
        }
    }

    #[test]
    fn keys_are_exchanged_and_what_an_old_one_signed_is_then_refused_though_it_was_seen_before() {
        let (old, new) = (Issuer::es256().named("1"), Issuer::es256().named("2"));
        let door = Door::with(&[("--jwt-jwks-file", &jwks(&[&old]))], &[]);
        let jwt = door.jwt();
        let token = old.token(&good());
        for _ in 0..2 {
            assert!(door.check(&token).is_ok());
        }
        let fetched = keys::from_jwks(jwks(&[&new]).as_bytes(), keys::Secrets::Refused).unwrap();
        jwt.set_fetched(fetched.clone());
        let before = Arc::as_ptr(&jwt.keys.load());
        jwt.set_fetched(fetched);
        assert_eq!(before, Arc::as_ptr(&jwt.keys.load()), "the same keys change nothing");
        assert!(door.check(&token).is_ok() && door.judges(&new, &good()).is_ok());
        // The file is gone: what was read of it stays.
        assert!(jwt.reload(&jwt.rules.load().knobs).is_err());
        assert!(door.check(&token).is_ok());
        jwt.exchange(|sources| sources.files.clear());
        assert_eq!(refused(door.check(&token)), Some(Refused::UnknownKey));
        jwt.set_fetched(Vec::new());
        assert_eq!(refused(door.check(&token)), Some(Refused::Unavailable));
    }
}
