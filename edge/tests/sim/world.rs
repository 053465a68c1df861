//! One run: everything is started, then broken for a while, then left alone until it has settled.

use std::sync::Arc;

use hawser_edge::config::Config;
use hawser_router::queue::memory::Fault;

use crate::client::Client;
use crate::disk::{Disk, any_fault};
use crate::edge::Edge;
use crate::env::{Env, Sabotage};
use crate::history::History;
use crate::router::Router;

/// Users with how many devices each.
const DEVICES: [usize; 4] = [2, 1, 2, 1];
const EDGES: usize = 2;
/// How long everybody has to come in at first.
const WARM_UP_MS: u64 = 10_000;
/// How long things break.
const TROUBLE_MS: u64 = 12_000;
/// How long it may take until everything is delivered after that.
const SETTLE_MS: u64 = 60_000;

/// See the module.
pub(crate) struct World {
    env: Env,
    config: Arc<Config>,
    edges: Vec<Option<Edge>>,
    /// When an edge that died is started again.
    edges_back_at_ms: [u64; EDGES],
    /// How far the clocks of the edges are off.
    skews_ms: [i64; EDGES],
    router: Option<Router>,
    router_back_at_ms: u64,
    disk: Disk,
    log_heals_at_ms: u64,
    store_heals_at_ms: u64,
    clients: Vec<Client>,
    users: Vec<String>,
    /// How rare each kind of trouble is in this run, in steps.
    rarity: [u32; 8],
}

impl World {
    /// Runs one seed to its end.
    pub(crate) fn run(seed: u64, config: &Arc<Config>, sabotage: Sabotage) -> History {
        let mut world = Self::new(seed, config, sabotage);
        world.env.calm = true;
        world.run_until(WARM_UP_MS, |world| world.clients.iter().all(Client::was_welcomed));
        // A device that was never seen counts once its record is durable, a moment after its Welcome.
        world.run_until(world.env.ms + 500, |_| false);
        world.env.calm = false;
        world.run_until(world.env.ms + TROUBLE_MS, |_| false);
        world.env.calm = true;
        let devices: Vec<_> =
            world.clients.iter().map(|c| (c.device.clone(), c.user.clone())).collect();
        world.run_until(world.env.ms + SETTLE_MS, |w| w.env.history.is_complete(&devices));
        // What comes too much comes a little later.
        world.run_until(world.env.ms + 3_000, |_| false);
        if world.env.history.violations.is_empty() {
            world.env.history.check(world.env.ms, &devices);
        }
        world.env.history
    }

    fn new(seed: u64, config: &Arc<Config>, sabotage: Sabotage) -> Self {
        let mut env = Env::new(seed, sabotage);
        let disk = Disk::new();
        let router = Some(Router::start(&mut env, &disk));
        let users: Vec<String> = (0..DEVICES.len()).map(|user| format!("u{user}")).collect();
        let devices = users.iter().zip(DEVICES);
        let clients = devices.flat_map(|(user, count)| {
            (0..count).map(move |device| Client::new(user, &format!("{user}d{device}")))
        });
        let clients = clients.collect();
        // Half the runs have clocks that are off; each has its own mix of troubles.
        let skew_ms = if env.rng.bool() { 1_500 } else { 0 };
        let skews_ms = [0; EDGES].map(|_: i64| env.rng.i64(-skew_ms..=skew_ms));
        let rarity = [0; 8].map(|_| 1 << env.rng.u32(6..13));
        let mut world = Self {
            env,
            config: Arc::clone(config),
            edges: Vec::new(),
            edges_back_at_ms: [0; EDGES],
            skews_ms,
            router,
            router_back_at_ms: 0,
            disk,
            log_heals_at_ms: 0,
            store_heals_at_ms: 0,
            clients,
            users,
            rarity,
        };
        world.edges = (0..EDGES).map(|index| Some(world.start_edge(index))).collect();
        world
    }

    fn start_edge(&mut self, index: usize) -> Edge {
        let skew_ms = self.skews_ms[index];
        Edge::start(&mut self.env, &format!("edge-{index}"), &self.config, skew_ms)
    }

    fn run_until(&mut self, end_ms: u64, done: impl Fn(&Self) -> bool) {
        while self.env.ms < end_ms && self.env.history.violations.is_empty() && !done(self) {
            self.env.ms += self.env.rng.u64(1..=25);
            self.heal();
            if !self.env.calm {
                self.trouble();
            }
            self.step();
        }
    }

    /// Everybody gets to run, in any order.
    fn step(&mut self) {
        let mut actors: Vec<usize> = (0..1 + EDGES + self.clients.len()).collect();
        self.env.rng.shuffle(&mut actors);
        for actor in actors {
            if actor == 0 {
                if let Some(router) = &mut self.router {
                    router.turn(&mut self.env, &mut self.disk);
                }
            } else if actor <= EDGES {
                let accepting = self.router.as_mut().map(|router| &mut router.accepting);
                if let Some(edge) = &mut self.edges[actor - 1] {
                    edge.turn(&mut self.env, accepting);
                }
            } else {
                let client = &mut self.clients[actor - 1 - EDGES];
                client.turn(&mut self.env, &mut self.edges, &self.users);
            }
        }
    }

    /// What was broken comes back when its time has come, or at once when all shall be calm.
    fn heal(&mut self) {
        let (ms, calm) = (self.env.ms, self.env.calm);
        if self.router.is_none() && (calm || ms >= self.router_back_at_ms) {
            self.router = Some(Router::start(&mut self.env, &self.disk));
        }
        for index in 0..EDGES {
            if self.edges[index].is_none() && (calm || ms >= self.edges_back_at_ms[index]) {
                self.edges[index] = Some(self.start_edge(index));
            }
        }
        if calm || ms >= self.log_heals_at_ms {
            self.disk.log.set_fault(Fault::None);
        }
        if calm || ms >= self.store_heals_at_ms {
            self.disk.store.set_refuses(false);
        }
    }

    /// Breaks something, perhaps.
    fn trouble(&mut self) {
        let env = &mut self.env;
        let hits = self.rarity.map(|rarity| env.once_in(rarity));
        if hits.contains(&true) {
            let names = "link leave stall edge_dies router_dies log store lost_link".split(' ');
            let hits: Vec<_> = names.zip(hits).filter(|(_, hit)| *hit).collect();
            env.trace(|| format!("trouble: {hits:?}"));
        }
        let [link, leave, stall, edge_dies, router_dies, log, store, lost_link] = hits;
        let ms = env.ms;
        let client = env.rng.usize(..self.clients.len());
        let index = env.rng.usize(..EDGES);
        if (link || lost_link)
            && let Some(stream) = self.edges[index].as_ref().and_then(Edge::link)
        {
            env.history.count("links broken");
            if lost_link {
                env.net.lose(stream);
            } else {
                env.net.cut(&mut env.rng, stream);
            }
        }
        if leave {
            env.history.count("clients left");
            self.clients[client].leave(env);
        }
        if stall {
            env.history.count("clients stalled");
            self.clients[client].stalled_until_ms = ms + env.rng.u64(200..5_000);
        }
        if edge_dies && let Some(edge) = self.edges[index].take() {
            env.history.count("edges died");
            edge.die(env);
            self.edges_back_at_ms[index] = ms + env.rng.u64(1..3_000);
        }
        if log {
            env.history.count("log failures");
            let fault = any_fault(&mut env.rng);
            self.disk.log.set_fault(fault);
            self.log_heals_at_ms = ms + env.rng.u64(1..1_500);
        }
        if store && self.router.is_some() {
            env.history.count("store failures");
            self.disk.store.set_refuses(true);
            self.store_heals_at_ms = ms + env.rng.u64(1..1_500);
        }
        if router_dies && let Some(router) = self.router.take() {
            env.history.count("routers died");
            router.die(env, &mut self.disk);
            self.router_back_at_ms = ms + env.rng.u64(1..3_000);
        }
    }
}
