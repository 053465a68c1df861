//! Shards, uplinks and the router's Hubs in one thread on virtual time: everything that can happen to a message
//! between two devices, from a seed.
//!
//! ```text
//!  client ─bytes─► net ─► edge (shards, mesh, uplinks) ─bytes─► net ─► router (links, owners, Hubs) ─► its own log
//!                                                                    └► routers, keepers, takeovers ─► engine for all
//! ```
//!
//! [`world`] starts and breaks things, [`history`] holds what clients saw against what is promised. Once for one router that
//! has its log for itself, and once for several that share an engine: there partitions move, two routers take themselves for
//! the owner, and one wakes up and goes on as if nothing had happened. A failure
//! names its seed: `HAWSER_SIM_SEED=7 cargo test -p hawser-edge --test sim` runs that one again, and
//! `HAWSER_SIM_SEEDS=10000` runs that many; with `HAWSER_SIM_TRACE=1` it tells its story. Everything but the order of
//! the router's hash tables comes from the seed: a rare failure that hangs on that order may take a few tries.

mod claims;
mod client;
mod edge;
mod engine;
mod env;
mod history;
mod keeper;
mod links;
mod net;
mod router;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_edge::config::Config;

use crate::env::Sabotage;
use crate::history::History;
use crate::world::World;

/// Seeds of an everyday run, for one router and for several.
const SEEDS: [u64; 2] = [100, 200];
/// Seeds within which a planted fault has to be found.
const CANARY_SEEDS: u64 = 200;
/// Routers that share an engine.
const ROUTERS: usize = 3;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Runs one seed; names it where it panics.
fn run(seed: u64, config: &Arc<Config>, sabotage: Sabotage, routers: usize) -> History {
    struct Named(u64);
    impl Drop for Named {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("HAWSER_SIM_SEED={}", self.0);
            }
        }
    }
    let named = Named(seed);
    let history = World::run(seed, config, sabotage, routers);
    drop(named);
    history
}

/// Runs the seeds that the environment names and panics with the first that breaks a promise.
fn run_all(seeds: u64, routers: usize) {
    let config = edge::config();
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let seeds = match number_from("HAWSER_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("HAWSER_SIM_SEEDS").unwrap_or(seeds),
    };
    for seed in seeds {
        let history = run(seed, &config, Sabotage::Nothing, routers);
        assert!(
            history.violations.is_empty(),
            "HAWSER_SIM_SEED={seed}\n  {}\n{:?}",
            history.violations.join("\n  "),
            history.counts,
        );
        for (what, count) in history.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{counts:#?}");
}

#[test]
fn every_acknowledged_message_arrives_once_and_in_order_whatever_breaks() {
    run_all(SEEDS[0], 1);
}

#[test]
fn every_acknowledged_message_arrives_once_and_in_order_wherever_partitions_are() {
    run_all(SEEDS[1], ROUTERS);
}

/// Whether some seed shows a planted fault; with what words.
fn found(sabotage: Sabotage, routers: usize) -> Option<String> {
    let config = edge::config();
    (0..CANARY_SEEDS).find_map(|seed| {
        let violation = run(seed, &config, sabotage, routers).violations.pop()?;
        println!("seed {seed}: {violation}");
        Some(violation)
    })
}

#[test]
fn a_forgotten_deliver_is_found() {
    let violation = found(Sabotage::DropDeliver(5), 1).expect("found");
    assert!(
        violation.contains("a hole without a Gap") || violation.contains("got []"),
        "{violation}"
    );
}

#[test]
fn a_router_that_forgets_what_it_accepted_is_found() {
    let violation = found(Sabotage::ForgetIdempotency, 1).expect("found");
    assert!(violation.contains(" got ["), "{violation}");
}

#[test]
fn a_log_that_loses_what_was_durable_is_found() {
    assert!(found(Sabotage::LoseDurable, 1).is_some());
}

#[test]
fn a_window_wider_than_told_is_found() {
    let violation = found(Sabotage::WideWindow, 1).expect("found");
    assert!(violation.contains("window exceeded"), "{violation}");
}

#[test]
fn a_takeover_that_skips_the_last_change_is_found() {
    assert!(found(Sabotage::SkipLastChange, ROUTERS).is_some());
}

#[test]
fn an_edge_that_believes_every_claim_is_found() {
    assert!(found(Sabotage::AnyEpoch, ROUTERS).is_some());
}

#[test]
fn a_log_that_is_trimmed_before_the_state_log_has_it_is_found() {
    assert!(found(Sabotage::TrimEarly, ROUTERS).is_some());
}

#[test]
fn an_owner_who_does_not_look_for_holes_is_found() {
    assert!(found(Sabotage::IgnoreHoles, ROUTERS).is_some());
}

#[test]
fn a_seed_runs_the_same_every_time() {
    let config = edge::config();
    let counts = |seed| run(seed, &config, Sabotage::Nothing, ROUTERS).counts;
    assert_eq!(counts(3), counts(3));
    assert_ne!(counts(3), counts(4));
}
