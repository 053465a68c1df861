//! Against a real server.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::*;
use crate::queue::PartitionId;
use crate::queue::nats::tests::config;
use crate::services::Service;

const PARTITIONS: u16 = 8;
const LEASE: Duration = Duration::from_millis(900);
const DEADLINE: Duration = Duration::from_secs(10);

/// A router that serves what it gains, and lets go what is wanted.
struct Router {
    running: JoinHandle<Result<(), QueueError>>,
    changes: UnboundedReceiver<Change>,
    tell: UnboundedSender<Told>,
    serves: Vec<PartitionId>,
}

impl Router {
    async fn start(service: &Service, name: &str) -> Self {
        Self::start_with(service, name, 1).await
    }

    async fn start_with(service: &Service, name: &str, replicas: u8) -> Self {
        let engine =
            NatsEngine::connect(&config(service, replicas), "test", PARTITIONS).await.unwrap();
        let (changes, changed) = unbounded_channel();
        let (tell, told) = unbounded_channel();
        let claimant = Claimant {
            router_id: name.to_owned(),
            address: "127.0.0.1:1".to_owned(),
            lease: LEASE,
        };
        let running = tokio::spawn(run(engine, claimant, Ends { changes, told }));
        Self { running, changes: changed, tell, serves: Vec::new() }
    }

    fn handle(&mut self, change: Change) {
        match change {
            Change::Gained(partition) => self.serves.push(partition),
            Change::Wanted(partition) | Change::Lost(partition) => {
                self.serves.retain(|served| *served != partition);
            }
        }
        if let Change::Wanted(partition) = change {
            self.tell.send(Told::Released(partition)).unwrap();
        }
    }
}

/// Lets routers do what they are told until each serves so many partitions, and all of them all.
async fn until<const N: usize>(mut routers: [&mut Router; N], counts: [usize; N]) {
    let serving = async {
        while (0..N).any(|index| routers[index].serves.len() != counts[index]) {
            let waiting = routers.iter_mut().map(|router| Box::pin(router.changes.recv()));
            let waiting: Vec<_> = waiting.collect();
            let (change, index) = first(waiting).await;
            routers[index].handle(change.unwrap());
        }
    };
    timeout(DEADLINE, serving).await.unwrap();
    let mut served: Vec<_> = routers.iter().flat_map(|router| router.serves.clone()).collect();
    served.sort_unstable();
    served.dedup();
    assert_eq!(served.len(), counts.iter().sum::<usize>(), "no partition is served twice");
}

/// What is ready first of several, and which it was.
async fn first<T>(mut futures: Vec<impl Future<Output = T> + Unpin>) -> (T, usize) {
    std::future::poll_fn(|context| {
        for (index, future) in futures.iter_mut().enumerate() {
            if let std::task::Poll::Ready(done) = std::pin::Pin::new(future).poll(context) {
                return std::task::Poll::Ready((done, index));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

#[tokio::test]
async fn routers_share_the_partitions_and_take_over_from_those_who_leave_or_die() {
    let service = Service::start("nats", &[]);
    let mut a = Router::start(&service, "a").await;
    until([&mut a], [8]).await;
    let mut b = Router::start(&service, "b").await;
    until([&mut a, &mut b], [4, 4]).await;
    let mut c = Router::start(&service, "c").await;
    until([&mut a, &mut b, &mut c], [3, 3, 2]).await;

    b.tell.send(Told::Stop).unwrap();
    let begun = Instant::now();
    b.running.await.unwrap().unwrap();
    until([&mut a, &mut c], [4, 4]).await;
    assert!(begun.elapsed() < LEASE, "who leaves is not waited for: {:?}", begun.elapsed());

    c.running.abort();
    let begun = Instant::now();
    until([&mut a], [8]).await;
    let took = begun.elapsed();
    assert!(took < LEASE + Duration::from_secs(1), "{took:?}");
    assert!(took > LEASE / 2, "{took:?}");
}

#[tokio::test]
async fn the_second_router_of_a_name_is_refused_and_one_that_died_is_replaced() {
    let service = Service::start("nats", &[]);
    let mut first = Router::start(&service, "same").await;
    until([&mut first], [8]).await;
    let second = Router::start(&service, "same").await;
    let sentence = second.running.await.unwrap().unwrap_err().0;
    assert!(sentence.contains("--router-id") && sentence.contains("same"), "{sentence}");
    assert!(first.changes.try_recv().is_err(), "the first noticed nothing");

    first.running.abort();
    let mut third = Router::start(&service, "same").await;
    until([&mut third], [8]).await;
}

#[tokio::test]
async fn without_the_servers_everything_is_lost_within_the_lease_and_gained_again_with_them() {
    let service = Service::start("nats", &[]);
    let mut router = Router::start(&service, "a").await;
    until([&mut router], [8]).await;
    let begun = Instant::now();
    service.kill_node(1);
    until([&mut router], [0]).await;
    let took = begun.elapsed();
    assert!(took < LEASE + Duration::from_millis(300), "{took:?}");
    service.start_node(1);
    until([&mut router], [8]).await;
    router.tell.send(Told::Stop).unwrap();
    router.running.await.unwrap().unwrap();
}

#[tokio::test]
async fn while_the_servers_elect_a_leader_nothing_moves() {
    let service = Service::start("nats", &["--nodes", "3"]);
    let mut a = Router::start_with(&service, "a", 3).await;
    until([&mut a], [8]).await;
    let mut b = Router::start_with(&service, "b", 3).await;
    until([&mut a, &mut b], [4, 4]).await;
    let client = async_nats::connect(service.address().split(',').collect::<Vec<_>>()).await;
    let context = async_nats::jetstream::new(client.unwrap());
    let bucket = context.get_key_value("test-claims").await.unwrap();
    let info = bucket.stream.cached_info();
    let leader = info.cluster.as_ref().unwrap().leader.as_deref().unwrap();
    service.kill_node(leader.trim_start_matches("nats-").parse().unwrap());
    // Once it can be written again, and a lease later, all is as it was.
    let written = async {
        let mut writes = 0;
        while writes < 5 {
            let write = timeout(LEASE / 4, bucket.put("other", "x".into())).await;
            writes += usize::from(matches!(write, Ok(Ok(_))));
            tokio::time::sleep(LEASE / 4).await;
        }
    };
    timeout(ELECTION_MAX, written).await.unwrap();
    assert_eq!((a.changes.try_recv().ok(), b.changes.try_recv().ok()), (None, None));
    b.tell.send(Told::Stop).unwrap();
    until([&mut a], [8]).await;
}
