//! Against real servers.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use clap::Parser as _;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::{Register, Unregister};

use super::reading::Online;
use super::*;
use crate::hub::{Effects, Event, Hub, Now};
use crate::registry::Session;
use crate::registry::view::Teller;
use crate::services::Service;
use crate::store::memory::MemoryStore;

const EDGE: EdgeId = EdgeId(0);
const OTHER: EdgeId = EdgeId(1);
const LEASE: Duration = Duration::from_millis(1_500);
const DEADLINE: Duration = Duration::from_secs(15);

/// A router with one partition: a real Hub, and what brings its registry to Redis.
struct Router {
    hub: Hub,
    teller: Teller,
    effects: Effects,
    edges: Arc<Mutex<Vec<(EdgeId, String, u64)>>>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    publishing: JoinHandle<()>,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}

fn config(service: &Service) -> Config {
    let urls = service.address().split(',').map(|at| format!("--redis-url=redis://{at}")).collect();
    let all: Vec<String> = [vec!["hawser-router".into(), "--registry=redis".into()], urls].concat();
    Config::parse_from(all)
}

impl Router {
    /// The owner of the partition with this epoch. Both edges are linked.
    fn start(service: &Service, name: &str, epoch: u64) -> Self {
        let config = config(service);
        let store = Arc::new(MemoryStore::default());
        let hub = Hub::new(0, config.hub(), store).unwrap().with_epoch(epoch);
        let metrics = Arc::new(Metrics::new(1));
        let (view, told) = View::new(1, metrics.registry_dropped.clone());
        let view = Arc::new(view);
        let teller = Teller::new(Arc::clone(&view));
        teller.note_served(0, Some(epoch));
        let edges = [(EDGE, "edge-1", u64::MAX), (OTHER, "edge 2", 7)];
        let edges = edges.map(|(id, name, epoch)| (id, name.to_owned(), epoch)).to_vec();
        let edges = Arc::new(Mutex::new(edges));
        let health = Arc::new(Health::default());
        let known = Arc::clone(&edges);
        let publisher = Publisher::new(Parts {
            config: config.redis,
            router: name.to_owned(),
            lease: LEASE,
            view,
            edges: Box::new(move || known.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
        });
        let publishing = tokio::spawn(publisher.run(told));
        let effects = Effects::default();
        let mut router = Self { hub, teller, effects, edges, health, metrics, publishing };
        for edge in [EDGE, OTHER] {
            router.apply(Event::EdgeUp(edge, Session(1)));
        }
        router
    }

    fn apply(&mut self, event: Event) {
        self.hub.apply(Now::default(), event, &mut self.effects);
        self.teller.tell(0, self.hub.epoch(), self.effects.registry.drain(..));
    }

    fn comes(&mut self, user: &str, edge: EdgeId, connection: u64) {
        let register = Register {
            connection,
            user: user.to_owned(),
            device: "phone".to_owned(),
            connected_at_ms: 5,
            client_kind: "app \"x\"".to_owned(),
            client_version: "1".to_owned(),
            ..Register::default()
        };
        let message = Inbound::Register(register);
        self.apply(Event::Link { edge, session: Session(1), message });
    }

    fn leaves(&mut self, user: &str, edge: EdgeId, connection: u64) {
        let message = Inbound::Unregister(Unregister { connection, user: user.to_owned() });
        self.apply(Event::Link { edge, session: Session(1), message });
    }

    /// What an owner does with every tick, some ticks long.
    async fn tick(&mut self) {
        let hub = &self.hub;
        self.teller.go_on(1, |_| Some(hub));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    /// Ticks until just these connections of the users are online.
    async fn until_online(&mut self, reader: &Reader, wanted: &[(&str, &[u64])]) {
        let deadline = Instant::now() + DEADLINE;
        let users: Vec<&str> = wanted.iter().map(|(user, _)| *user).collect();
        loop {
            let wrong = match reader.look_up(&users).await {
                Err(error) => error,
                Ok(found) => {
                    let found = found.iter().map(|online| connections(online)).zip(wanted);
                    let mut wrong = found.filter(|(found, (_, numbers))| found != numbers);
                    match wrong.next() {
                        None => return,
                        first => format!("{first:?} and {} more", wrong.count()),
                    }
                }
            };
            let (health, dropped) = (self.health.sentences(), self.metrics.registry_dropped.get());
            assert!(Instant::now() < deadline, "{wrong}; {health:?}, {dropped} dropped");
            self.tick().await;
        }
    }
}

fn connections(online: &[Online]) -> Vec<u64> {
    online.iter().map(|online| online.connection).collect()
}

async fn reader(service: &Service) -> Reader {
    let config = config(service).redis;
    Reader { connection: Connection::open(&config).await.unwrap(), config }
}

/// Another service.
struct Reader {
    config: RedisConfig,
    connection: Connection,
}

impl Reader {
    /// Connects again where the connection is of no use after servers were away.
    async fn look_up(&self, users: &[&str]) -> Result<Vec<Vec<Online>>, String> {
        if let Ok(found) = look_up(&self.connection, "hawser", users).await {
            return Ok(found);
        }
        let connection = Connection::open(&self.config).await?;
        look_up(&connection, "hawser", users).await.map_err(|error| error.to_string())
    }
}

/// The contract, on a cluster and on one server without.
async fn holds_the_contract(service: &Service) {
    let reader = reader(service).await;
    let mut router = Router::start(service, "router-1", 0);
    router.comes("bob", EDGE, u64::MAX - 1);
    router.until_online(&reader, &[("bob", &[u64::MAX - 1]), ("nobody", &[])]).await;
    let bob = reader.look_up(&["bob"]).await.unwrap().remove(0).remove(0);
    assert_eq!((&*bob.device, &*bob.edge, bob.edge_epoch), ("phone", "edge-1", u64::MAX));
    assert_eq!((&*bob.kind, &*bob.version, bob.connected_at_ms), ("app \"x\"", "1", 5));

    // Another edge has the device now: what the first says of it later hits nobody.
    router.comes("bob", OTHER, 2);
    router.until_online(&reader, &[("bob", &[2])]).await;
    let stale = Change::Left {
        user: "bob".into(),
        connection: crate::registry::ConnectionRef { edge: EDGE, connection: 2 },
    };
    router.teller.tell(0, 0, [stale].into_iter());
    router.comes("carol}{", OTHER, 3);
    router.until_online(&reader, &[("bob", &[2]), ("carol}{", &[3])]).await;

    // Many, over all slots, in one look; some leave.
    let users: Vec<String> = (0..1_200).map(|number| format!("user {number}")).collect();
    for (number, user) in (0..).zip(&users) {
        router.comes(user, EDGE, number);
    }
    for (number, user) in (0..).zip(&users).filter(|(number, _)| number % 3 == 0) {
        router.leaves(user, EDGE, number);
    }
    let numbers: Vec<[u64; 1]> = (0..users.len() as u64).map(|number| [number]).collect();
    let wanted = users.iter().zip(&numbers).map(|(user, number)| match number[0] % 3 {
        0 => (&**user, &[][..]),
        _ => (&**user, &number[..]),
    });
    let wanted: Vec<_> = wanted.collect();
    router.until_online(&reader, &wanted).await;

    // An edge that nobody waits for any more takes its own along, and nobody else.
    router.edges.lock().unwrap().retain(|(id, ..)| *id == OTHER);
    router.until_online(&reader, &[("user 1", &[]), ("bob", &[2])]).await;

    // So does a router that is gone, for everybody.
    router.publishing.abort();
    let ttl: i64 = redis::from_redis_value(
        reader.connection.ask(redis::cmd("PTTL").arg(user_key("hawser", "bob"))).await.unwrap(),
    )
    .unwrap();
    assert!(ttl > 40 * 60 * 1_000, "what a user leaves behind expires, but not soon: {ttl}");
    router.until_online(&reader, &[("bob", &[])]).await;

    // And it is taken over by a later owner, whom the former one cannot disturb.
    let mut later = Router::start(service, "router-2", 9);
    later.comes("bob", EDGE, 20);
    later.until_online(&reader, &[("bob", &[20])]).await;
    let mut former = Router::start(service, "router-1", 0);
    former.comes("bob", OTHER, 2);
    former.comes("dave", OTHER, 4);
    former.leaves("bob", EDGE, 20);
    let deadline = Instant::now() + DEADLINE;
    while former.metrics.registry_outdated.get() == 0 {
        assert!(Instant::now() < deadline, "{:?}", former.health);
        former.tick().await;
    }
    later.until_online(&reader, &[("bob", &[20]), ("dave", &[])]).await;
}

#[tokio::test]
async fn a_cluster_knows_who_is_online_as_long_as_somebody_says_so() {
    holds_the_contract(&Service::start("redis", &["--nodes", "3"])).await;
}

#[tokio::test]
async fn so_does_one_server_without_cluster() {
    holds_the_contract(&Service::start("redis", &[])).await;
}

#[tokio::test]
async fn slots_that_move_while_users_come_lose_nobody() {
    let service = Service::start("redis", &["--nodes", "3"]);
    let reader = reader(&service).await;
    let mut router = Router::start(&service, "router-1", 0);
    let users: Vec<String> = (0..3_000).map(|number| format!("user {number}")).collect();
    let (before, during) = users.split_at(1_500);
    for (number, user) in (0..).zip(before) {
        router.comes(user, EDGE, number);
    }
    router.until_online(&reader, &[(&before[1_499], &[1_499])]).await;
    let mut moving = reshard(&service, 400);
    let mut during = (1_500..).zip(during);
    while moving.try_wait().unwrap().is_none() {
        for (number, user) in during.by_ref().take(20) {
            router.comes(user, EDGE, number);
            router.leaves(&users[number as usize - 1_500], EDGE, number - 1_500);
        }
        router.tick().await;
    }
    assert!(moving.wait().unwrap().success());
    for (number, user) in during {
        router.comes(user, EDGE, number);
        router.leaves(&users[number as usize - 1_500], EDGE, number - 1_500);
    }
    let numbers: Vec<[u64; 1]> = (0..users.len() as u64).map(|number| [number]).collect();
    let wanted = users
        .iter()
        .zip(&numbers)
        .map(|(user, number)| (&**user, if number[0] < 1_500 { &[][..] } else { &number[..] }));
    router.until_online(&reader, &wanted.collect::<Vec<_>>()).await;
}

/// Moves slots, with what is in them, from the first server to the second.
fn reshard(service: &Service, slots: usize) -> std::process::Child {
    let address = service.address();
    let mut addresses = address.split(',');
    let id = |address: &str| {
        let port = address.rsplit(':').next().unwrap();
        let said =
            Command::new("redis-cli").args(["-p", port, "CLUSTER", "MYID"]).output().unwrap();
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    };
    let first = addresses.next().unwrap();
    let (from, to) = (id(first), id(addresses.next().unwrap()));
    let slots = slots.to_string();
    Command::new("redis-cli")
        .args(["--cluster", "reshard", first, "--cluster-from", &from, "--cluster-to", &to])
        .args(["--cluster-slots", &slots, "--cluster-yes"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_server_that_dies_and_comes_back_empty_is_told_everything_again() {
    let service = Service::start("redis", &["--nodes", "3"]);
    let reader = reader(&service).await;
    let mut router = Router::start(&service, "router-1", 0);
    let users: Vec<String> = (0..300).map(|number| format!("user {number}")).collect();
    for (number, user) in (0..).zip(&users) {
        router.comes(user, EDGE, number);
    }
    let numbers: Vec<[u64; 1]> = (0..300).map(|number| [number]).collect();
    let wanted: Vec<(&str, &[u64])> =
        users.iter().zip(&numbers).map(|(user, number)| (&**user, &number[..])).collect();
    router.until_online(&reader, &wanted).await;

    for node in 1..=3 {
        service.kill_node(node);
    }
    // Somebody leaves and somebody comes while nobody hears it.
    router.leaves("user 0", EDGE, 0);
    router.comes("late", OTHER, 400);
    let deadline = Instant::now() + DEADLINE;
    while router.health.of(Part::Registry).is_none() || router.metrics.registry_dropped.get() == 0 {
        assert!(Instant::now() < deadline, "nobody says that Redis is away");
        router.tick().await;
    }
    for node in 1..=3 {
        service.start_node(node);
    }
    let mut wanted = wanted;
    wanted[0].1 = &[];
    wanted.push(("late", &[400]));
    router.until_online(&reader, &wanted).await;
    assert_eq!(router.health.of(Part::Registry), None);
}

#[tokio::test]
async fn a_master_without_replica_takes_its_own_slots_along_and_what_was_missed_is_mended() {
    let service = Service::start("redis", &["--nodes", "3"]);
    let reader = reader(&service).await;
    let mut router = Router::start(&service, "router-1", 0);
    let users: Vec<String> = (0..200).map(|number| format!("user {number}")).collect();
    for (number, user) in (0..).zip(&users) {
        router.comes(user, EDGE, number);
    }
    router.until_online(&reader, &[("user 1", &[1]), ("user 199", &[199])]).await;
    let keys = [partition_key("hawser", 0), edge_key("hawser", "edge-1", u64::MAX)];
    let keep: Vec<usize> = masters_of(&service, &keys);
    let dies = (1..=3).find(|node| !keep.contains(node)).unwrap();
    service.kill_node(dies);
    for (number, user) in (0..).zip(&users) {
        router.leaves(user, EDGE, number);
    }
    let keys: Vec<String> = users.iter().map(|user| user_key("hawser", user)).collect();
    let masters = masters_of(&service, &keys).into_iter().zip(&users);
    let others: Vec<(&str, &[u64])> =
        masters.filter(|(master, _)| *master != dies).map(|(_, user)| (&**user, &[][..])).collect();
    assert!(!others.is_empty() && others.len() < users.len());
    router.until_online(&reader, &others).await;
    service.start_node(dies);
    let gone: Vec<(&str, &[u64])> = users.iter().map(|user| (&**user, &[][..])).collect();
    router.comes("last", EDGE, 900);
    let mut wanted = gone;
    wanted.push(("last", &[900]));
    router.until_online(&reader, &wanted).await;
    let deadline = Instant::now() + DEADLINE;
    while router.metrics.registry_rewrites.get() == 0 {
        assert!(Instant::now() < deadline, "what was missed is not written again");
        router.tick().await;
    }
}

/// Which servers have these keys, as `services/redis` deals the slots out.
fn masters_of(service: &Service, keys: &[String]) -> Vec<usize> {
    let address = service.address();
    let living = address.split(',').map(|address| address.rsplit(':').next().unwrap());
    let asked: String = keys.iter().map(|key| format!("CLUSTER KEYSLOT \"{key}\"\n")).collect();
    for port in living {
        let mut asking = Command::new("redis-cli")
            .args(["-p", port])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut asking.stdin.take().unwrap(), asked.as_bytes()).unwrap();
        let said = asking.wait_with_output().unwrap().stdout;
        let slots: Vec<usize> = String::from_utf8(said)
            .unwrap()
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect();
        if slots.len() == keys.len() {
            let master = |slot: usize| (1..=3).find(|node| slot < 16_384 * node / 3).unwrap();
            return slots.into_iter().map(master).collect();
        }
    }
    panic!("no server says where {} keys are", keys.len());
}
