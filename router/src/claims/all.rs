//! Where one router is alone: it owns everything, from the start to the end.

use super::{Change, Ends, Told};
use crate::queue::PartitionId;

/// Gives every partition out, and takes back what the router says; for the engine `embedded`.
pub async fn run(partitions: u16, mut ends: Ends) {
    for partition in 0..partitions as PartitionId {
        let _ = ends.changes.send(Change::Gained(partition));
    }
    while let Some(Told::Released(_)) = ends.told.recv().await {}
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn everything_is_gained_and_the_end_is_the_end() {
        let (changes, mut changed) = mpsc::unbounded_channel();
        let (tell, told) = mpsc::unbounded_channel();
        let running = tokio::spawn(run(3, Ends { changes, told }));
        for partition in 0..3 {
            assert_eq!(changed.recv().await, Some(Change::Gained(partition)));
        }
        tell.send(Told::Stop).unwrap();
        running.await.unwrap();
        assert_eq!(changed.recv().await, None);
    }
}
