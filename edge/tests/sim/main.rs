//! Shards, uplinks and the router's Hubs in one thread on virtual time: everything that can happen to a message
//! between two devices, from a seed.
//!
//! ```text
//!  client ─bytes─► net ─► edge (shards, mesh, uplink) ─bytes─► net ─► router (links, owners, Hubs) ─► disk
//! ```
//!
//! [`world`] starts and breaks things, [`history`] holds what clients saw against what is promised. A failure
//! names its seed: `HAWSER_SIM_SEED=7 cargo test -p hawser-edge --test sim` runs that one again, and
//! `HAWSER_SIM_SEEDS=10000` runs that many; with `HAWSER_SIM_TRACE=1` it tells its story. Everything but the order of
//! the router's hash tables comes from the seed: a rare failure that hangs on that order may take a few tries.

mod client;
mod disk;
mod edge;
mod env;
mod history;
mod net;
mod owner;
mod router;
mod world;

use std::collections::BTreeMap;

use crate::env::Sabotage;
use crate::world::World;

/// Seeds of an everyday run.
const SEEDS: u64 = 200;
/// Seeds within which a planted fault has to be found.
const CANARY_SEEDS: u64 = 60;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Runs these seeds and panics with the first that breaks a promise. Returns what was counted.
fn run_all(seeds: impl Iterator<Item = u64>) -> BTreeMap<&'static str, u64> {
    let config = edge::config();
    let mut counts = BTreeMap::new();
    for seed in seeds {
        let history = World::run(seed, &config, Sabotage::Nothing);
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
    counts
}

#[test]
fn every_acknowledged_message_arrives_once_and_in_order_whatever_breaks() {
    let counts = match number_from("HAWSER_SIM_SEED") {
        Some(seed) => run_all(seed..=seed),
        None => run_all(0..number_from("HAWSER_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    println!("{counts:#?}");
}

/// Whether some seed shows a planted fault; with what words.
fn found(sabotage: Sabotage) -> Option<String> {
    let config = edge::config();
    (0..CANARY_SEEDS).find_map(|seed| World::run(seed, &config, sabotage).violations.pop())
}

#[test]
fn a_forgotten_deliver_is_found() {
    let violation = found(Sabotage::DropDeliver(5)).expect("found");
    assert!(
        violation.contains("a hole without a Gap") || violation.contains("got []"),
        "{violation}"
    );
}

#[test]
fn a_router_that_forgets_what_it_accepted_is_found() {
    let violation = found(Sabotage::ForgetIdempotency).expect("found");
    assert!(violation.contains(" got ["), "{violation}");
}

#[test]
fn a_log_that_loses_what_was_durable_is_found() {
    assert!(found(Sabotage::LoseDurable).is_some());
}

#[test]
fn a_window_wider_than_told_is_found() {
    let violation = found(Sabotage::WideWindow).expect("found");
    assert!(violation.contains("window exceeded"), "{violation}");
}

#[test]
fn a_seed_runs_the_same_every_time() {
    let config = edge::config();
    let counts = |seed| World::run(seed, &config, Sabotage::Nothing).counts;
    assert_eq!(counts(3), counts(3));
    assert_ne!(counts(3), counts(4));
}
