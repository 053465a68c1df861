//! Which knobs may change while the edge runs.
//!
//! A reload (SIGHUP, or `POST /reload` at the admin address) reads the file again. Knobs that are [`Change::Live`] take effect
//! at once, also for those who are connected, with what their texts say; a new value of one that needs a
//! [`Change::Restart`] is named in a warning and waits for the next start.

use std::ffi::OsString;

use hawser_proto::knobs::{Knobs, Source, Unread, UsageError, differences};

use super::{Config, ServiceUrl, files};

/// When a new value of a knob takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// With the next reload.
    Live,
    /// With the next start: the kernel, the router or a running shard was told the old one.
    Restart,
}

/// Every knob. A test holds this against the knobs that there are.
pub const CHANGES: &[(&str, Change)] = &[
    // The ports are bound, and the router knows this edge by its name.
    ("listen", Change::Restart),
    ("admin", Change::Restart),
    ("router", Change::Restart),
    ("router_tls_ca", Change::Restart),
    ("router_tls_cert", Change::Restart),
    ("router_tls_key", Change::Restart),
    ("router_tls_name", Change::Restart),
    ("edge_id", Change::Restart),
    ("region", Change::Restart),
    // Rings, tables of sockets and buffers are as large as they are.
    ("shards", Change::Restart),
    ("connections_max", Change::Restart),
    ("receive_buffers", Change::Restart),
    ("receive_buffer_bytes", Change::Restart),
    ("handshakes_max", Change::Restart),
    ("dev_auth", Change::Restart),
    // What checks tokens is what it was; files of keys are read again all the same.
    ("jwt_hs256_key_file", Change::Restart),
    ("jwt_key_file", Change::Restart),
    ("jwt_jwks_file", Change::Restart),
    ("jwt_jwks_url", Change::Restart),
    ("jwt_jwks_refresh", Change::Restart),
    ("jwt_jwks_refetch_min", Change::Restart),
    ("auth_url", Change::Restart),
    ("auth_timeout", Change::Restart),
    ("auth_calls_max", Change::Restart),
    ("auth_cache", Change::Restart),
    ("rate_classes", Change::Restart),
    ("log_format", Change::Restart),
    // Read at each use.
    ("client_path", Change::Live),
    ("echo_path", Change::Live),
    ("payload_bytes_max", Change::Live),
    ("ping_interval_active", Change::Live),
    ("ping_interval_idle", Change::Live),
    ("ping_interval_background", Change::Live),
    ("missed_beats_max", Change::Live),
    ("ping_grace", Change::Live),
    ("proxy_protocol_from", Change::Live),
    ("allowed_origins", Change::Live),
    // For tokens that come from now on.
    ("jwt_issuer", Change::Live),
    ("jwt_audience", Change::Live),
    ("jwt_clock_skew", Change::Live),
    ("jwt_user_claim", Change::Live),
    ("jwt_exp_optional", Change::Live),
    // As long as TLS stays on, or stays off.
    ("tls_cert", Change::Live),
    ("tls_key", Change::Live),
    ("tls_min_version", Change::Live),
    ("tls_ticket_keys", Change::Live),
    ("tls_client_ca", Change::Live),
    ("tls_client_auth", Change::Live),
    ("tls_handshake_timeout", Change::Live),
    ("handshake_timeout", Change::Live),
    ("connect_timeout", Change::Live),
    ("close_timeout", Change::Live),
    ("send_timeout", Change::Live),
    ("sends_in_flight_max", Change::Live),
    ("outbox_bytes_max", Change::Live),
    ("messages_per_second", Change::Live),
    ("bytes_per_second", Change::Live),
    ("burst_seconds", Change::Live),
    ("address_connections_max", Change::Live),
    ("address_connects_per_second", Change::Live),
    ("address_failures_per_second", Change::Live),
    ("user_connections_max", Change::Live),
    ("user_connects_per_second", Change::Live),
    // Level and size at once, the offer itself for those who connect from now on.
    ("deflate", Change::Live),
    ("deflate_level", Change::Live),
    ("deflate_bytes_min", Change::Live),
    ("drain_window", Change::Live),
    ("drain_delay", Change::Live),
    ("log", Change::Live),
    ("admin_token_file", Change::Live),
];

/// Whether a reload takes a new value of this knob over.
#[must_use]
pub fn is_live(knob: &str) -> bool {
    CHANGES.iter().any(|(name, change)| *name == knob && *change == Change::Live)
}

/// What a reload comes to.
#[derive(Debug)]
pub struct Reloaded {
    /// To live by from now on.
    pub knobs: Knobs<Config>,
    /// Knobs that changed.
    pub changed: Vec<String>,
    /// Knobs with a new value that waits for the next start.
    pub waiting: Vec<String>,
}

impl Config {
    /// Where this process finds its knobs, with these arguments (the program's name first).
    #[must_use]
    pub fn source(args: impl IntoIterator<Item = OsString>) -> Source {
        Source::new(super::ENV_PREFIX, args, std::env::vars_os())
    }

    /// The knobs of this moment, checked against each other.
    ///
    /// # Errors
    /// See [`Source::read`]; and when two knobs contradict each other.
    pub fn read_from(source: &Source) -> Result<Knobs<Config>, Unread> {
        let mut knobs = source.read::<Config>()?;
        settle(&mut knobs)?;
        Ok(knobs)
    }

    /// The knobs to go on with after a reload. With the new file the edge could have been started, too: a value that only
    /// the next start would stumble over is refused now.
    ///
    /// # Errors
    /// The sentence with which a start would have been refused; nothing has changed.
    pub fn reload(source: &Source, running: &Knobs<Config>) -> Result<Reloaded, UsageError> {
        let fresh = Config::read_from(source).map_err(usage)?;
        files::check(&fresh.values)?;
        // A socket that was accepted in plain cannot be asked for TLS.
        let turns = fresh.values.tls.is_on() != running.values.tls.is_on();
        let may_change = |knob: &str| is_live(knob) && !(turns && knob.starts_with("tls_"));
        let mut knobs = source.read_again(running, may_change).map_err(usage)?;
        settle(&mut knobs)?;
        let names = |before, after| differences(before, after).map(str::to_owned).collect();
        let changed = names(&running.effective, &knobs.effective);
        let waiting = names(&knobs.effective, &fresh.effective);
        Ok(Reloaded { knobs, changed, waiting })
    }
}

fn settle(knobs: &mut Knobs<Config>) -> Result<(), UsageError> {
    knobs.values.settle()?;
    let edge_id = knobs.values.edge_id.clone();
    knobs.derive("edge_id", edge_id);
    // A password in it stays out of logs and answers.
    let admission = &knobs.values.admission;
    let urls = [("jwt_jwks_url", &admission.jwt_jwks_url), ("auth_url", &admission.auth_url)];
    let shown = urls.map(|(knob, url)| (knob, url.as_ref().map(ServiceUrl::to_string)));
    for (knob, url) in shown {
        if let Some(url) = url {
            knobs.derive(knob, url);
        }
    }
    Ok(())
}

fn usage(unread: Unread) -> UsageError {
    match unread {
        Unread::Usage(error) => error,
        Unread::Asked(_) => UsageError("--help: a process that runs does not give it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn every_knob_is_said_to_be_live_or_to_need_a_restart() {
        let source = Source::new("HAWSER_EDGE", [OsString::from("hawser-edge")], []);
        let knobs = Config::read_from(&source).unwrap().effective;
        let there: BTreeSet<_> = knobs.iter().map(|effective| effective.knob.as_str()).collect();
        let said: BTreeSet<_> = CHANGES.iter().map(|(knob, _)| *knob).collect();
        assert_eq!(said.len(), CHANGES.len(), "a knob stands in CHANGES twice");
        let missing: Vec<_> = there.difference(&said).collect();
        assert!(missing.is_empty(), "add them to CHANGES in config/change.rs: {missing:?}");
        let gone: Vec<_> = said.difference(&there).collect();
        assert!(gone.is_empty(), "take them out of CHANGES in config/change.rs: {gone:?}");
    }

    #[test]
    fn a_reload_takes_what_is_live_names_what_waits_and_refuses_a_wrong_file_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("edge.toml");
        let config = format!("--config={}", file.display());
        let args = ["hawser-edge", &config, "--missed-beats-max=3"].map(OsString::from);
        let source = Source::new("HAWSER_EDGE", args, []);
        fs::write(&file, "shards = 2\nlog = \"info\"\n").unwrap();
        let running = Config::read_from(&source).unwrap();

        fs::write(&file, "shards = 3\nping_grace = \"9s\"\nmissed_beats_max = 5\n").unwrap();
        let reloaded = Config::reload(&source, &running).unwrap();
        assert_eq!(reloaded.changed, ["ping_grace"]);
        assert_eq!(reloaded.waiting, ["shards"]);
        let config = &reloaded.knobs.values;
        assert_eq!((config.shards, config.ping_grace.as_secs()), (Some(2), 9));
        assert_eq!(config.missed_beats_max, 3, "a flag still wins");

        for (text, told) in [
            ("ping_grace = \"9 parsecs\"", "ping_grace in "),
            ("listen = \"nowhere\"", "listen in "),
            ("payload_bytes_max = \"1MiB\"", "--outbox-bytes-max: "),
            ("admin_token_file = \"/nowhere/token\"", "--admin-token-file: /nowhere/token "),
        ] {
            fs::write(&file, text).unwrap();
            let UsageError(sentence) = Config::reload(&source, &running).unwrap_err();
            assert!(sentence.starts_with(told), "{text}: {sentence}");
        }
        fs::remove_file(&file).unwrap();
        assert!(Config::reload(&source, &running).is_err());
    }
}
