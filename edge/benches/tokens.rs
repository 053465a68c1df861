//! What the check of a token costs: for the first time, again, and with `jsonwebtoken` alone. Microseconds of one thread, the
//! median of nine rounds.
//!
//!     cargo bench -p hawser-edge --bench tokens
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

#[path = "../tests/support/tokens.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod tokens;

use std::time::{Instant, SystemTime};

use hawser_edge::auth::jwt::Jwt;
use hawser_edge::auth::keys::{self, Secrets};
use hawser_edge::config::Config;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use crate::tokens::{Issuer, jwks};

const TOKENS: usize = 500;
const ROUNDS: usize = 9;

fn main() {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let unix_ms = i64::try_from(unix.as_millis()).unwrap();
    println!("{:8} {:>8} {:>8} {:>14}", "us", "first", "again", "jsonwebtoken");
    for (name, issuer, algorithm) in [
        ("HS256", Issuer::hs256(&[7; 32]), Algorithm::HS256),
        ("RS256", Issuer::rs256(), Algorithm::RS256),
        ("ES256", Issuer::es256(), Algorithm::ES256),
        ("EdDSA", Issuer::eddsa(), Algorithm::EdDSA),
    ] {
        let set = jwks(&[&issuer]);
        let made: Vec<String> = (0..TOKENS)
            .map(|n| {
                issuer.token(&json!({
                    "sub": format!("user-{n}"), "exp": unix.as_secs() + 3600, "iss": "https://login.example.com",
                    "permissions": ["send:users", "signals"],
                }))
            })
            .collect();
        let key = DecodingKey::from_jwk(&serde_json::from_value::<Jwk>(issuer.jwk()).unwrap());
        let (key, validation) = (key.unwrap(), Validation::new(algorithm));
        let (mut first, mut again, mut library) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            // New keys know no token.
            let jwt = Jwt::load(&Config::default().admission).unwrap();
            jwt.set_fetched(keys::from_jwks(set.as_bytes(), Secrets::Taken).unwrap());
            let check = |token: &str| assert!(jwt.check(unix_ms, token).is_ok());
            first.push(micros_each(&made, check));
            again.push(micros_each(&made, check));
            library.push(micros_each(&made, |token| {
                assert!(jsonwebtoken::decode::<Value>(token, &key, &validation).is_ok());
            }));
        }
        let [first, again, library] = [first, again, library].map(median);
        println!("{name:8} {first:8.1} {again:8.1} {library:14.1}");
    }
}

fn micros_each(tokens: &[String], check: impl Fn(&str)) -> f64 {
    let start = Instant::now();
    for token in tokens {
        check(token);
    }
    start.elapsed().as_secs_f64() * 1e6 / tokens.len() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
