//! The contract of [`Queue`](super::Queue) as tests that every engine runs.

use bytes::Bytes;

use super::{Batch, Offset, Opener, PartitionId, Queue, Record};

/// Partitions of the logs under test.
pub(super) const PARTITIONS: u16 = 4;

/// Runs everything that holds for any engine. `opener` opens one and the same log every time, empty at first.
pub(super) fn holds(opener: &mut dyn Opener) {
    an_empty_log_reads_as_nothing(opener);
    offsets_count_up_by_one_in_each_partition(opener);
    what_was_appended_is_there_after_opening_again(opener);
    reading_starts_at_an_offset_and_stops_at_the_size(opener);
    trimming_forgets_below_and_never_gives_an_offset_twice(opener);
    skipping_leaves_offsets_out(opener);
    a_partition_that_is_not_there_is_refused(opener);
}

/// The bytes of a test record.
pub(super) fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Appends durably and gives the offsets.
pub(super) fn append(queue: &mut dyn Queue, records: &[(PartitionId, &str)]) -> Vec<Offset> {
    let records = records.iter().map(|(partition, record)| (*partition, text(record))).collect();
    let mut offsets = Vec::new();
    queue.append(&Batch { records, durable: true }, &mut offsets).unwrap();
    offsets
}

/// Everything from an offset on.
pub(super) fn read(queue: &mut dyn Queue, partition: PartitionId, from: Offset) -> Vec<Record> {
    let mut records = Vec::new();
    let mut next = from;
    loop {
        let before = records.len();
        queue.read(partition, next, 1_000, &mut records).unwrap();
        if records.len() == before {
            return records;
        }
        next = records[records.len() - 1].offset + 1;
    }
}

fn record(offset: Offset, bytes: &str) -> Record {
    Record { offset, bytes: text(bytes) }
}

fn an_empty_log_reads_as_nothing(opener: &mut dyn Opener) {
    let mut queue = opener.open().unwrap();
    for partition in 0..PARTITIONS {
        assert_eq!(queue.end(partition), 1);
        assert!(read(&mut *queue, partition, 0).is_empty());
    }
}

fn offsets_count_up_by_one_in_each_partition(opener: &mut dyn Opener) {
    let mut queue = opener.open().unwrap();
    let offsets = append(&mut *queue, &[(0, "a"), (1, "b"), (0, "c"), (3, "d"), (0, "e")]);
    assert_eq!(offsets, [1, 1, 2, 1, 3]);
    assert_eq!(append(&mut *queue, &[(1, "f"), (0, "g")]), [2, 4]);
    assert_eq!(
        read(&mut *queue, 0, 1),
        [record(1, "a"), record(2, "c"), record(3, "e"), record(4, "g")]
    );
    assert_eq!(queue.end(0), 5);
    assert_eq!(queue.end(2), 1);
}

fn what_was_appended_is_there_after_opening_again(opener: &mut dyn Opener) {
    let mut queue = opener.open().unwrap();
    assert_eq!(read(&mut *queue, 1, 1), [record(1, "b"), record(2, "f")]);
    assert_eq!(append(&mut *queue, &[(1, "h")]), [3]);
    drop(queue);
    let mut queue = opener.open().unwrap();
    assert_eq!(read(&mut *queue, 1, 2), [record(2, "f"), record(3, "h")]);
}

fn reading_starts_at_an_offset_and_stops_at_the_size(opener: &mut dyn Opener) {
    let mut queue = opener.open().unwrap();
    let long = "x".repeat(400);
    for _ in 0..20 {
        append(&mut *queue, &[(2, &long)]);
    }
    let mut page = Vec::new();
    queue.read(2, 5, 1_000, &mut page).unwrap();
    assert_eq!(page[0].offset, 5);
    assert!((1..=4).contains(&page.len()), "{} records", page.len());
    page.clear();
    queue.read(2, 5, 1, &mut page).unwrap();
    assert_eq!(page.len(), 1);
    page.clear();
    queue.read(2, 21, 1_000, &mut page).unwrap();
    assert!(page.is_empty());
    let offsets: Vec<_> = read(&mut *queue, 2, 0).iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (1..=20).collect::<Vec<_>>());
}

fn trimming_forgets_below_and_never_gives_an_offset_twice(opener: &mut dyn Opener) {
    let mut queue = opener.open().unwrap();
    queue.trim(&[(0, 3), (1, 100)]).unwrap();
    queue.trim(&[(0, 2)]).unwrap();
    assert_eq!(read(&mut *queue, 0, 3), [record(3, "e"), record(4, "g")]);
    drop(queue);
    let mut queue = opener.open().unwrap();
    assert_eq!(read(&mut *queue, 0, 3), [record(3, "e"), record(4, "g")]);
    assert_eq!(append(&mut *queue, &[(1, "i"), (0, "j")]), [4, 5]);
}

fn skipping_leaves_offsets_out(opener: &mut dyn Opener) {
    let mut queue = opener.open().unwrap();
    if queue.skip_to(3, 50).is_err() {
        // Such an engine never loses what it has given an offset to.
        return;
    }
    queue.skip_to(3, 20).unwrap();
    assert_eq!(append(&mut *queue, &[(3, "k")]), [50]);
    drop(queue);
    let mut queue = opener.open().unwrap();
    assert_eq!(read(&mut *queue, 3, 2), [record(50, "k")]);
    assert_eq!(append(&mut *queue, &[(3, "l")]), [51]);
}

fn a_partition_that_is_not_there_is_refused(opener: &mut dyn Opener) {
    let mut queue = opener.open().unwrap();
    let batch = Batch { records: vec![(PARTITIONS, text("x"))], durable: true };
    assert!(queue.append(&batch, &mut Vec::new()).is_err());
}
