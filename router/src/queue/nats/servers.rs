//! What the servers say about themselves on their monitoring port, and what may be lost where they are set up so.

use std::time::Duration;

use serde::Deserialize;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The part that matters here of `/jsz`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    server_id: String,
    disabled: bool,
    config: JetStream,
    meta_cluster: Option<MetaCluster>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JetStream {
    sync_always: bool,
    /// In nanoseconds.
    sync_interval: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MetaCluster {
    cluster_size: usize,
}

/// Sentences about what may be lost: a server does not sync what it acknowledges, or nobody knows whether it does.
pub(super) async fn unsynced(monitors: &[String]) -> Vec<String> {
    if monitors.is_empty() {
        return vec![
            "whether the NATS servers sync what they acknowledge is not known: a power cut may lose acknowledged messages \
             unless every server has `sync_interval: always` (--nats-monitor URL, given for each, checks it)"
                .to_owned(),
        ];
    }
    let mut told = Vec::with_capacity(monitors.len());
    for monitor in monitors {
        told.push((monitor.as_str(), ask(monitor).await));
    }
    judge(&told)
}

async fn ask(monitor: &str) -> Result<State, String> {
    let url = format!("{}/jsz", monitor.trim_end_matches('/'));
    let client = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build();
    let get = async {
        let answer = client?.get(url).send().await?.error_for_status()?;
        answer.bytes().await
    };
    let bytes = get.await.map_err(|error: reqwest::Error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

fn judge(told: &[(&str, Result<State, String>)]) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut checked = ahash::AHashSet::new();
    let mut cluster_size = 1;
    for (monitor, state) in told {
        match state {
            Err(error) => warnings.push(format!(
                "--nats-monitor: {monitor} does not say whether it syncs what it acknowledges: {error}"
            )),
            Ok(state) if state.disabled => {
                warnings.push(format!("--nats-monitor: {monitor} has JetStream disabled"));
            }
            Ok(state) => {
                checked.insert(state.server_id.as_str());
                let size = state.meta_cluster.as_ref().map_or(1, |cluster| cluster.cluster_size);
                cluster_size = cluster_size.max(size);
                if !state.config.sync_always {
                    warnings.push(format!(
                        "the NATS server at {monitor} syncs only every {:?}: a power cut loses what was acknowledged since. \
                         Set `sync_interval: always` in its jetstream block",
                        Duration::from_nanos(state.config.sync_interval)
                    ));
                }
            }
        }
    }
    if checked.len() < cluster_size {
        warnings.push(format!(
            "--nats-monitor: {} of {cluster_size} NATS servers say whether they sync what they acknowledge; give it for each",
            checked.len()
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(server_id: &str, sync_always: bool) -> Result<State, String> {
        let config = JetStream { sync_always, sync_interval: 120_000_000_000 };
        let meta_cluster = Some(MetaCluster { cluster_size: 2 });
        Ok(State { server_id: server_id.to_owned(), disabled: false, config, meta_cluster })
    }

    #[test]
    fn servers_that_all_sync_are_not_spoken_of() {
        assert!(judge(&[("a", state("A", true)), ("b", state("B", true))]).is_empty());
    }

    #[test]
    fn every_server_that_does_not_sync_and_every_unknown_one_is_named() {
        let warnings = judge(&[("a", state("A", false)), ("b", Err("refused".to_owned()))]);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].contains("at a syncs only every 120s"));
        assert!(warnings[1].contains("b does not say"));
        assert!(warnings[2].contains("1 of 2"));
        // The same server twice is one.
        assert_eq!(judge(&[("a", state("A", true)), ("a", state("A", true))]).len(), 1);
    }
}
