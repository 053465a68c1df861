//! A client of the server API, which holds every answer against the document that the router serves.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Router};

/// The key of these tests, with every scope.
pub const KEY: &str = "opens everything";

/// One entry of the file of keys.
pub fn key_entry(name: &str, key: &str, scopes: &[&str], more: &str) -> String {
    let sha256 =
        digest(&SHA256, key.as_bytes()).as_ref().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
    format!("[[key]]\nname = {name:?}\nsha256 = {sha256:?}\nscopes = {scopes:?}\n{more}\n")
}

/// Starts a router with the API, whose file of keys is `keys.toml` in `folder`: [`KEY`] and these.
pub fn start(folder: &Path, keys: &str, arguments: &[&str]) -> (Router, Client) {
    let scopes = ["publish", "publish_as", "online", "disconnect", "inbox", "trace"];
    let keys = [&key_entry("service", KEY, &scopes, ""), keys].concat();
    let file = folder.join("keys.toml");
    std::fs::write(&file, keys).unwrap();
    let api = ["--api", "127.0.0.1:0", "--api-keys", file.to_str().unwrap()];
    let router = Router::start(folder, &[&api, arguments].concat());
    let client = Client::new(&router.api);
    (router, client)
}

/// See the module.
pub struct Client {
    address: String,
    pub document: Value,
    checked: AtomicUsize,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Value,
}

impl Reply {
    /// Name of the code of an error.
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }
}

impl Client {
    fn new(address: &str) -> Self {
        let mut client = Self {
            address: address.to_owned(),
            document: Value::Null,
            checked: AtomicUsize::new(0),
        };
        client.document = client.exchange("GET", "/openapi.json", &[], b"").body;
        client
    }

    /// How many answers were held against the document.
    pub fn checked(&self) -> usize {
        self.checked.load(Ordering::Relaxed)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], None)
    }

    pub fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, &[], None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, &[], Some(body))
    }

    /// A request with [`KEY`].
    pub fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Reply {
        let bearer = format!("Bearer {KEY}");
        let mut all = vec![("Authorization", bearer.as_str())];
        let bytes = body.map_or_else(Vec::new, |body| {
            all.push(("Content-Type", "application/json"));
            body.to_string().into_bytes()
        });
        all.extend(headers);
        self.send(method, path, &all, &bytes)
    }

    /// A request as it is. The answer is in the document.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let reply = self.exchange(method, path, headers, body);
        if let Some(operation) = self.operation(method, path) {
            self.check(operation, &reply);
        }
        reply
    }

    fn exchange(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        write!(head, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        // A router that has seen enough may answer and close.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {answer}"));
        Reply { status, head: head.to_ascii_lowercase(), body }
    }

    /// The operation of the document that a request is for.
    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let path = path.split('?').next()?;
        let fits = |template: &str| {
            let mut segments = path.split('/');
            template.split('/').all(|wanted| {
                segments.next().is_some_and(|segment| wanted.starts_with('{') || wanted == segment)
            }) && segments.next().is_none()
        };
        let paths = self.document["paths"].as_object()?;
        let (_, operations) = paths.iter().find(|(template, _)| fits(template))?;
        operations.get(method.to_ascii_lowercase())
    }

    fn check(&self, operation: &Value, reply: &Reply) {
        let documented = &operation["responses"][reply.status.to_string()];
        let schema = &documented["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{} is not in the document: {reply:?}", reply.status);
        let whole = json!({ "allOf": [schema], "components": self.document["components"] });
        let validator = jsonschema::validator_for(&whole).unwrap();
        let problems: Vec<_> =
            validator.iter_errors(&reply.body).map(|error| error.to_string()).collect();
        assert!(problems.is_empty(), "{problems:?} in {reply:?}");
        self.checked.fetch_add(1, Ordering::Relaxed);
    }
}
