//! A queue in memory, for tests and simulation: everything appended is durable, nothing survives the
//! process. It can be told to fail, before or after the records are in the log.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::{Batch, Offset, Opener, PartitionId, Queue, QueueError, Record};

/// How the next appends go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// They succeed.
    #[default]
    None,
    /// They fail and leave nothing.
    Refuse,
    /// They fail, but the records are in the log: the answer was lost.
    LoseAnswer,
}

/// The log itself. Clones share it, so it outlives the engine that was dropped after a fault.
#[derive(Debug, Clone)]
pub struct MemoryLog(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    partitions: Vec<Partition>,
    fault: Fault,
}

#[derive(Debug, Default, Clone)]
struct Partition {
    /// Offset of the first record that is held.
    start: Offset,
    records: std::collections::VecDeque<Bytes>,
}

impl MemoryLog {
    /// An empty log.
    #[must_use]
    pub fn new(partitions: u16) -> Self {
        let empty = Partition { start: 1, records: std::collections::VecDeque::new() };
        Self(Arc::new(Mutex::new(State {
            partitions: vec![empty; usize::from(partitions)],
            fault: Fault::None,
        })))
    }

    /// Decides about the appends from now on.
    pub fn set_fault(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opener for MemoryLog {
    fn open(&mut self) -> Result<Box<dyn Queue>, QueueError> {
        if self.lock().fault == Fault::Refuse {
            return Err(QueueError("the log was told to refuse".to_owned()));
        }
        Ok(Box::new(self.clone()))
    }
}

impl Queue for MemoryLog {
    fn append(&mut self, batch: &Batch, offsets: &mut Vec<Offset>) -> Result<(), QueueError> {
        offsets.clear();
        let mut state = self.lock();
        if state.fault == Fault::Refuse {
            return Err(QueueError("the log was told to refuse".to_owned()));
        }
        for (partition, bytes) in &batch.records {
            let Some(place) = state.partitions.get_mut(usize::from(*partition)) else {
                return Err(QueueError::no_partition(*partition));
            };
            offsets.push(place.start + place.records.len() as u64);
            place.records.push_back(bytes.clone());
        }
        if state.fault == Fault::LoseAnswer {
            return Err(QueueError("the log was told to lose its answer".to_owned()));
        }
        Ok(())
    }

    fn read(
        &mut self,
        partition: PartitionId,
        from: Offset,
        bytes_max: usize,
        out: &mut Vec<Record>,
    ) -> Result<(), QueueError> {
        let state = self.lock();
        let Some(partition) = state.partitions.get(usize::from(partition)) else { return Ok(()) };
        let from = from.max(partition.start);
        let mut bytes_read = 0;
        let skipped = (from - partition.start) as usize;
        for (bytes, offset) in partition.records.iter().skip(skipped).zip(from..) {
            out.push(Record { offset, bytes: bytes.clone() });
            bytes_read += bytes.len();
            if bytes_read >= bytes_max {
                break;
            }
        }
        Ok(())
    }

    fn end(&self, partition: PartitionId) -> Offset {
        let state = self.lock();
        state
            .partitions
            .get(usize::from(partition))
            .map_or(1, |partition| partition.start + partition.records.len() as u64)
    }

    fn skip_to(&mut self, partition: PartitionId, next: Offset) -> Result<(), QueueError> {
        if self.end(partition) < next
            && let Some(partition) = self.lock().partitions.get_mut(usize::from(partition))
        {
            partition.records.clear();
            partition.start = next;
        }
        Ok(())
    }

    fn trim(&mut self, below: &[(PartitionId, Offset)]) -> Result<(), QueueError> {
        let mut state = self.lock();
        for (partition, below) in below {
            let Some(partition) = state.partitions.get_mut(usize::from(*partition)) else {
                continue;
            };
            while partition.start < *below && partition.records.pop_front().is_some() {
                partition.start += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::*;

    #[test]
    fn the_contract_holds() {
        contract::holds(&mut MemoryLog::new(contract::PARTITIONS));
    }

    #[test]
    fn a_lost_answer_leaves_the_records_and_a_refusal_leaves_nothing() {
        let mut log = MemoryLog::new(1);
        let batch = Batch { records: vec![(0, contract::text("a"))], durable: true };
        log.set_fault(Fault::Refuse);
        assert!(log.append(&batch, &mut Vec::new()).is_err());
        assert_eq!(log.end(0), 1);
        log.set_fault(Fault::LoseAnswer);
        assert!(log.append(&batch, &mut Vec::new()).is_err());
        assert_eq!(log.end(0), 2);
    }
}
