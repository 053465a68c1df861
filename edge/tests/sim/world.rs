//! One run: everything is started, then broken for a while, then left alone until it has settled.

use std::sync::Arc;

use hawser_edge::config::Config;
use hawser_router::store::memory::MemoryStore;

use crate::claims::Claims;
use crate::client::Client;
use crate::edge::Edge;
use crate::engine::Engine;
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
    machines: Vec<Machine>,
    routers: Vec<Option<Router>>,
    engine: Engine,
    /// Absent where one router has everything.
    claims: Option<Claims>,
    clients: Vec<Client>,
    users: Vec<String>,
    /// How rare each kind of trouble is in this run, in steps.
    rarity: [u32; 11],
}

/// Where a router runs.
#[derive(Default)]
struct Machine {
    store: Arc<MemoryStore>,
    /// When a router that died is started again.
    back_at_ms: u64,
    /// Until when it stands still.
    stopped_until_ms: u64,
    store_heals_at_ms: u64,
}

impl World {
    /// Runs one seed to its end, with one router that has its log for itself, or with several that share an engine.
    pub(crate) fn run(
        seed: u64,
        config: &Arc<Config>,
        sabotage: Sabotage,
        routers: usize,
    ) -> History {
        let mut world = Self::new(seed, config, sabotage, routers);
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

    fn new(seed: u64, config: &Arc<Config>, sabotage: Sabotage, routers: usize) -> Self {
        let mut env = Env::new(seed, sabotage);
        let engine = Engine::new(&mut env.rng, routers, sabotage);
        let users: Vec<String> = (0..DEVICES.len()).map(|user| format!("u{user}")).collect();
        let devices = users.iter().zip(DEVICES);
        let clients = devices.flat_map(|(user, count)| {
            (0..count).map(move |device| Client::new(user, &format!("{user}d{device}")))
        });
        let clients = clients.collect();
        // Half the runs have clocks that are off; each has its own mix of troubles.
        let skew_ms = if env.rng.bool() { 1_500 } else { 0 };
        let skews_ms = [0; EDGES].map(|_: i64| env.rng.i64(-skew_ms..=skew_ms));
        let rarity = [0; 11].map(|_| 1 << env.rng.u32(6..13));
        let mut world = Self {
            env,
            config: Arc::clone(config),
            edges: Vec::new(),
            edges_back_at_ms: [0; EDGES],
            skews_ms,
            machines: (0..routers).map(|_| Machine::default()).collect(),
            routers: (0..routers).map(|_| None).collect(),
            engine,
            claims: (routers > 1).then(|| Claims::new(routers)),
            clients,
            users,
            rarity,
        };
        world.edges = (0..EDGES).map(|index| Some(world.start_edge(index))).collect();
        world
    }

    fn start_edge(&mut self, index: usize) -> Edge {
        let (skew_ms, routers) = (self.skews_ms[index], self.machines.len());
        Edge::start(&mut self.env, &format!("edge-{index}"), &self.config, skew_ms, routers)
    }

    fn run_until(&mut self, end_ms: u64, done: impl Fn(&Self) -> bool) {
        while self.env.ms < end_ms && self.env.history.violations.is_empty() && !done(self) {
            let step_ms = self.env.rng.u64(1..=25);
            self.env.pass(step_ms);
            self.engine.pass(self.env.ms, self.env.calm);
            self.heal();
            if !self.env.calm {
                self.trouble();
            }
            self.step();
            let deeds = self.engine.take_deeds();
            for sentence in deeds.violations {
                self.env.history.violation(self.env.ms, sentence);
            }
            for (what, count) in deeds.counts {
                *self.env.history.counts.entry(what).or_default() += count;
            }
        }
    }

    /// Everybody gets to run, in any order.
    fn step(&mut self) {
        if let Some(claims) = &mut self.claims {
            claims.turn(&mut self.env, &mut self.routers);
        }
        let routers = self.routers.len();
        let mut actors: Vec<usize> = (0..routers + EDGES + self.clients.len()).collect();
        self.env.rng.shuffle(&mut actors);
        for actor in actors {
            if actor < routers {
                let stands_still = self.machines[actor].stopped_until_ms > self.env.ms;
                if let Some(router) = &mut self.routers[actor]
                    && !stands_still
                {
                    router.turn(&mut self.env);
                }
            } else if actor < routers + EDGES {
                if let Some(edge) = &mut self.edges[actor - routers] {
                    edge.turn(&mut self.env, &mut self.routers);
                }
            } else {
                let client = &mut self.clients[actor - routers - EDGES];
                client.turn(&mut self.env, &mut self.edges, &self.users);
            }
        }
    }

    /// What was broken comes back when its time has come, or at once when all shall be calm.
    fn heal(&mut self) {
        let (ms, calm) = (self.env.ms, self.env.calm);
        let is_sole = self.claims.is_none();
        for (index, machine) in self.machines.iter_mut().enumerate() {
            if calm {
                machine.stopped_until_ms = 0;
            }
            if calm || ms >= machine.store_heals_at_ms {
                machine.store.set_refuses(false);
            }
            if self.routers[index].is_none() && (calm || ms >= machine.back_at_ms) {
                self.routers[index] =
                    Router::start(&mut self.env, &self.engine, &machine.store, index, is_sole);
            }
        }
        for index in 0..EDGES {
            if self.edges[index].is_none() && (calm || ms >= self.edges_back_at_ms[index]) {
                self.edges[index] = Some(self.start_edge(index));
            }
        }
    }

    /// Breaks something, perhaps.
    fn trouble(&mut self) {
        let env = &mut self.env;
        let hits = self.rarity.map(|rarity| env.once_in(rarity));
        if hits.contains(&true) {
            let names = "link leave stall edge_dies router_dies log store lost_link stop move part";
            let hits: Vec<_> = names.split(' ').zip(hits).filter(|(_, hit)| *hit).collect();
            env.trace(|| format!("trouble: {hits:?}"));
        }
        let [link, leave, stall, edge_dies, router_dies, log, store, lost_link, stop, moves, part] =
            hits;
        let ms = env.ms;
        let client = env.rng.usize(..self.clients.len());
        let index = env.rng.usize(..EDGES);
        let router = env.rng.usize(..self.machines.len());
        if (link || lost_link)
            && let Some(stream) = self.edges[index].as_ref().and_then(|edge| edge.link(router))
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
            self.engine.fail_until(ms + env.rng.u64(1..1_500));
        }
        if store && self.routers[router].is_some() {
            env.history.count("store failures");
            self.machines[router].store.set_refuses(true);
            self.machines[router].store_heals_at_ms = ms + env.rng.u64(1..1_500);
        }
        if router_dies {
            self.kill_router(router);
        }
        if let Some(claims) = &mut self.claims {
            let env = &mut self.env;
            if stop {
                env.history.count("routers stopped");
                let stop_ms = env.rng.u64(100..5_000);
                self.machines[router].stopped_until_ms = ms + stop_ms;
                if stop_ms > 1_500 && env.rng.u8(..4) > 0 {
                    claims.note_gone(env, router, self.machines.len());
                }
            }
            if moves {
                claims.move_one(env, self.machines.len());
            }
            if part {
                env.history.count("routers parted from the engine");
                self.engine.part_from(router, ms + env.rng.u64(1..2_000));
            }
        }
    }

    fn kill_router(&mut self, index: usize) {
        let Some(router) = self.routers[index].take() else { return };
        let routers = self.machines.len();
        let (env, machine) = (&mut self.env, &mut self.machines[index]);
        env.history.count("routers died");
        router.die(env);
        machine.store.set_refuses(false);
        machine.stopped_until_ms = 0;
        machine.back_at_ms = env.ms + env.rng.u64(1..3_000);
        if let Some(claims) = &mut self.claims {
            claims.note_gone(env, index, routers);
            if env.rng.u8(..3) == 0 {
                env.history.count("disks lost");
                machine.store = Arc::default();
            }
        }
    }
}
