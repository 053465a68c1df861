//! The history of a run, as the clients saw it, and the judgement over it.
//!
//! Clients log every submission, answer and delivery in the order in which they happened; [`check`] reads the log
//! once at the end. It trusts no server: what it knows is what crossed the clients' sockets.

use std::fmt::Write as _;

use serde::Serialize;

/// Entries a message takes when nothing goes wrong: sent, accepted, delivered.
const ENTRIES_PER_MESSAGE: usize = 3;
/// Findings that are told in words; all are counted.
const SAMPLES_MAX: usize = 20;

/// One message: the sender's client number, and the message's number among that sender's, from 1. Every sender
/// writes to one recipient, so this also names the order that has to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MessageName {
    pub sender: u32,
    pub number: u32,
}

/// What a client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A Send went out; again for each repetition.
    Sent(MessageName),
    /// SendAck without error.
    Accepted { message: MessageName, message_id: u64 },
    /// SendAck with an error, or an error for good: not acknowledged.
    Refused(MessageName),
    /// The recipient's application got it, after the session's sequence check.
    Delivered { message: MessageName, recipient: u32, sequence: u64, message_id: u64 },
    /// The application got something that nobody in this run sent to it.
    Foreign { recipient: u32, sequence: u64 },
    /// The server told a gap; both inclusive.
    Gap { recipient: u32, first: u64, last: u64 },
    /// Welcome put the recipient's cursor here.
    Resumed { recipient: u32, cursor: u64 },
}

/// The log of a run, bounded.
#[derive(Debug)]
pub(crate) struct History {
    entries: Vec<Entry>,
    entries_max: usize,
    sends: usize,
    sends_max: usize,
    unlogged: u64,
}

impl History {
    /// For at most `sends_max` sends, repetitions counted, and as many entries again for what goes wrong.
    pub(crate) fn new(sends_max: usize) -> Self {
        let entries_max = sends_max.saturating_mul(ENTRIES_PER_MESSAGE * 2).max(1_024);
        Self { entries: Vec::new(), entries_max, sends: 0, sends_max, unlogged: 0 }
    }

    /// Whether another message may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.sends < self.sends_max
    }

    /// One entry. At the bound it is counted instead, and the verdict says that it is incomplete.
    pub(crate) fn record(&mut self, entry: Entry) {
        if self.entries.len() >= self.entries_max {
            self.unlogged += 1;
            return;
        }
        self.sends += usize::from(matches!(entry, Entry::Sent(_)));
        self.entries.push(entry);
    }
}

/// What was found. `lost`, `duplicates` and the fields down to `unlogged` are zero in a sound run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// Acknowledged by SendAck and never delivered.
    pub lost: u64,
    /// Delivered to the application a second time.
    pub duplicates: u64,
    /// Of `duplicates`: under another sequence, so it was stored twice.
    pub stored_twice: u64,
    /// Delivered after a message that the same sender sent later.
    pub out_of_order: u64,
    /// Sequences that were jumped over without a Gap, or a sequence that went backwards.
    pub holes: u64,
    /// Gaps told by the server; no message of a run expires, so each is a finding.
    pub gaps: u64,
    /// One message with two message ids, in answers or in answer and delivery.
    pub ids_changed: u64,
    /// Delivered though nobody sent it to this recipient, or with another content.
    pub foreign: u64,
    /// Sent and never acknowledged, though there was time for it.
    pub unanswered: u64,
    /// Entries that found no room: what stands here was not checked.
    pub unlogged: u64,
    /// Different messages sent.
    pub sent: u64,
    /// Different messages acknowledged.
    pub acknowledged: u64,
    /// Different messages delivered.
    pub delivered: u64,
    /// Late because the server refused them and they had to be sent again; allowed.
    pub late_after_refusal: u64,
    /// The first findings in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

impl Verdict {
    /// Nothing was found.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0
            && self.duplicates == 0
            && self.out_of_order == 0
            && self.holes == 0
            && self.gaps == 0
            && self.ids_changed == 0
            && self.foreign == 0
            && self.unanswered == 0
            && self.unlogged == 0
    }

    fn tell(&mut self, finding: std::fmt::Arguments<'_>) {
        if self.findings.len() < SAMPLES_MAX {
            let mut sentence = String::new();
            let written = sentence.write_fmt(finding);
            debug_assert!(written.is_ok(), "a String takes everything");
            self.findings.push(sentence);
        }
    }
}

/// What is known of one message while the log is read.
#[derive(Clone, Copy, Debug, Default)]
struct MessageState {
    /// Where in the log it was first sent (counted from 1); 0: never.
    first_sent: u64,
    /// Where it was last sent for a reason of ours or the server's that may cost its place: after a refusal.
    /// Equal to `first_sent` when it never was refused.
    last_sent: u64,
    refused: bool,
    message_id: u64,
    accepted: bool,
    delivered: Option<u64>,
}

/// What is known of one client as a sender and as a recipient.
#[derive(Debug, Default)]
struct ClientState {
    /// Messages sent, by number less one.
    messages: Vec<MessageState>,
    /// Latest first submission among the delivered messages of this sender.
    delivered_sent: u64,
    /// Sequence that its inbox stands at; `None` before the first Welcome.
    cursor: Option<u64>,
}

/// Judges a run of `clients` clients. `recipient_of` says to whom a sender writes.
pub(crate) fn check(
    history: &History,
    clients: usize,
    recipient_of: impl Fn(u32) -> u32,
) -> Verdict {
    let mut check = Check {
        clients: (0..clients).map(|_| ClientState::default()).collect(),
        verdict: Verdict { unlogged: history.unlogged, ..Verdict::default() },
    };
    for (place, entry) in (1..).zip(&history.entries) {
        match *entry {
            Entry::Sent(message) => check.sent(place, message),
            Entry::Accepted { message, message_id } => check.accepted(message, message_id),
            Entry::Refused(message) => check.refused(message),
            Entry::Delivered { message, recipient, sequence, message_id } => {
                check.advance(recipient, sequence);
                if recipient_of(message.sender) == recipient {
                    check.delivered(message, sequence, message_id);
                } else {
                    check.foreign(recipient, sequence);
                }
            }
            Entry::Foreign { recipient, sequence } => {
                check.advance(recipient, sequence);
                check.foreign(recipient, sequence);
            }
            Entry::Gap { recipient, first, last } => check.gap(recipient, first, last),
            Entry::Resumed { recipient, cursor } => check.resumed(recipient, cursor),
        }
    }
    check.finish()
}

struct Check {
    clients: Vec<ClientState>,
    verdict: Verdict,
}

impl Check {
    fn message(&mut self, MessageName { sender, number }: MessageName) -> &mut MessageState {
        let messages = &mut self.clients[sender as usize].messages;
        let at = (number as usize).saturating_sub(1);
        if messages.len() <= at {
            messages.resize(at + 1, MessageState::default());
        }
        &mut messages[at]
    }

    fn sent(&mut self, place: u64, name: MessageName) {
        let message = self.message(name);
        if message.first_sent == 0 {
            message.first_sent = place;
            message.last_sent = place;
        } else if message.refused {
            message.last_sent = place;
        }
    }

    fn accepted(&mut self, name: MessageName, message_id: u64) {
        let message = self.message(name);
        message.accepted = true;
        self.same_id(name, message_id);
    }

    fn refused(&mut self, name: MessageName) {
        self.message(name).refused = true;
    }

    fn same_id(&mut self, name: MessageName, message_id: u64) {
        let message = self.message(name);
        let known = std::mem::replace(&mut message.message_id, message_id);
        if known != 0 && known != message_id {
            self.verdict.ids_changed += 1;
            self.verdict.tell(format_args!(
                "message {} of client {} had the id {known} and then {message_id}",
                name.number, name.sender
            ));
        }
    }

    fn delivered(&mut self, name: MessageName, sequence: u64, message_id: u64) {
        let message = *self.message(name);
        if message.first_sent == 0 {
            return self.foreign(name.sender, sequence);
        }
        if let Some(before) = message.delivered {
            self.verdict.duplicates += 1;
            self.verdict.stored_twice += u64::from(before != sequence);
            self.verdict.tell(format_args!(
                "message {} of client {} was delivered as sequence {before} and again as {sequence}",
                name.number, name.sender
            ));
            return;
        }
        self.message(name).delivered = Some(sequence);
        self.same_id(name, message_id);
        let sender = &mut self.clients[name.sender as usize];
        let overtaken = message.first_sent < sender.delivered_sent;
        let overtaken_for_sure = message.last_sent < sender.delivered_sent;
        sender.delivered_sent = sender.delivered_sent.max(message.first_sent);
        if overtaken_for_sure {
            self.verdict.out_of_order += 1;
            self.verdict.tell(format_args!(
                "message {} of client {} was delivered after one that was sent later",
                name.number, name.sender
            ));
        } else if overtaken {
            self.verdict.late_after_refusal += 1;
        }
    }

    fn foreign(&mut self, client: u32, sequence: u64) {
        self.verdict.foreign += 1;
        self.verdict.tell(format_args!(
            "client {client} got sequence {sequence}, which nobody sent to it like that"
        ));
    }

    /// The application got `sequence`: it has to be the next one.
    fn advance(&mut self, recipient: u32, sequence: u64) {
        let cursor = self.clients[recipient as usize].cursor.replace(sequence);
        let expected = cursor.unwrap_or_default() + 1;
        if sequence != expected {
            self.verdict.holes += sequence.abs_diff(expected);
            self.verdict.tell(format_args!(
                "client {recipient} got sequence {sequence} where {expected} was next"
            ));
        }
    }

    fn gap(&mut self, recipient: u32, first: u64, last: u64) {
        self.verdict.gaps += 1;
        self.verdict.tell(format_args!("client {recipient} was told a gap, {first} to {last}"));
        let cursor = &mut self.clients[recipient as usize].cursor;
        *cursor = Some(cursor.unwrap_or_default().max(last));
    }

    fn resumed(&mut self, recipient: u32, server: u64) {
        let cursor = &mut self.clients[recipient as usize].cursor;
        // A user of a run is new: before the first Welcome its inbox is empty.
        let own = cursor.unwrap_or_default();
        *cursor = Some(own.max(server));
        if server != own {
            self.verdict.holes += server.abs_diff(own);
            self.verdict.tell(format_args!(
                "client {recipient} had taken over sequence {own}, and Welcome said {server}"
            ));
        }
    }

    fn finish(mut self) -> Verdict {
        for (sender, client) in self.clients.iter().enumerate() {
            for (number, message) in (1..).zip(&client.messages) {
                let verdict = &mut self.verdict;
                verdict.sent += u64::from(message.first_sent > 0);
                verdict.acknowledged += u64::from(message.accepted);
                verdict.delivered += u64::from(message.delivered.is_some());
                if message.accepted && message.delivered.is_none() {
                    verdict.lost += 1;
                    verdict.tell(format_args!(
                        "message {number} of client {sender} was acknowledged with id {} and never delivered",
                        message.message_id
                    ));
                }
                if message.first_sent > 0 && !message.accepted {
                    verdict.unanswered += 1;
                    verdict.tell(format_args!(
                        "message {number} of client {sender} was never acknowledged"
                    ));
                }
            }
        }
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 0;
    const B: u32 = 1;

    fn name(number: u32) -> MessageName {
        MessageName { sender: A, number }
    }
    fn sent(number: u32) -> Entry {
        Entry::Sent(name(number))
    }
    fn accepted(number: u32) -> Entry {
        Entry::Accepted { message: name(number), message_id: 100 + u64::from(number) }
    }
    fn delivered(number: u32, sequence: u64) -> Entry {
        let message_id = 100 + u64::from(number);
        Entry::Delivered { message: name(number), recipient: B, sequence, message_id }
    }

    fn judge(entries: &[Entry]) -> Verdict {
        let mut history = History::new(100);
        entries.iter().for_each(|entry| history.record(*entry));
        check(&history, 2, |sender| sender ^ 1)
    }

    #[test]
    fn a_sound_history_is_clean() {
        let verdict = judge(&[
            Entry::Resumed { recipient: B, cursor: 0 },
            sent(1),
            sent(2),
            accepted(1),
            delivered(1, 1),
            delivered(2, 2),
            Entry::Resumed { recipient: B, cursor: 2 },
            sent(2),
            accepted(2),
        ]);
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.sent, verdict.acknowledged, verdict.delivered), (2, 2, 2));
    }

    #[test]
    fn an_acknowledged_message_that_never_comes_is_lost() {
        let verdict = judge(&[sent(1), sent(2), accepted(1), accepted(2), delivered(1, 1)]);
        assert_eq!(verdict.lost, 1);
        assert!(verdict.findings[0].contains("message 2 of client 0"), "{:?}", verdict.findings);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn an_unacknowledged_message_is_unanswered_and_not_lost() {
        let verdict = judge(&[sent(1)]);
        assert_eq!((verdict.lost, verdict.unanswered), (0, 1));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_message_stored_twice_is_a_duplicate_under_two_sequences() {
        let verdict = judge(&[sent(1), accepted(1), delivered(1, 1), sent(1), delivered(1, 2)]);
        assert_eq!((verdict.duplicates, verdict.stored_twice), (1, 1));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn the_same_sequence_twice_is_a_duplicate_and_goes_backwards() {
        let verdict = judge(&[sent(1), accepted(1), delivered(1, 1), delivered(1, 1)]);
        assert_eq!((verdict.duplicates, verdict.stored_twice, verdict.holes), (1, 0, 1));
    }

    #[test]
    fn a_later_message_that_comes_first_is_out_of_order() {
        let verdict =
            judge(&[sent(1), sent(2), accepted(1), accepted(2), delivered(2, 1), delivered(1, 2)]);
        assert_eq!(verdict.out_of_order, 1);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_refused_message_may_come_later_but_not_after_one_sent_after_its_repetition() {
        let refused = Entry::Refused(name(1));
        let rest = [delivered(2, 1), delivered(1, 2), accepted(1), accepted(2)];
        let verdict = judge(&[&[sent(1), sent(2), refused, sent(1)][..], &rest].concat());
        assert_eq!((verdict.out_of_order, verdict.late_after_refusal), (0, 1));
        assert!(verdict.is_clean(), "{verdict:?}");
        let verdict = judge(&[&[sent(1), refused, sent(1), sent(2)][..], &rest].concat());
        assert_eq!(verdict.out_of_order, 1);
    }

    #[test]
    fn a_repetition_without_a_refusal_keeps_the_first_place() {
        let verdict = judge(&[
            sent(1),
            sent(2),
            sent(1),
            sent(2),
            delivered(2, 1),
            delivered(1, 2),
            accepted(1),
            accepted(2),
        ]);
        assert_eq!(verdict.out_of_order, 1);
    }

    #[test]
    fn a_jump_over_sequences_is_a_hole() {
        let verdict = judge(&[sent(1), accepted(1), delivered(1, 4)]);
        assert_eq!(verdict.holes, 3);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_cursor_that_welcome_moves_is_a_hole_either_way() {
        let resumed = |cursor| Entry::Resumed { recipient: B, cursor };
        let sound = [sent(1), accepted(1), delivered(1, 1)];
        let verdict = judge(&[&sound[..], &[resumed(3)]].concat());
        assert_eq!(verdict.holes, 2);
        let verdict = judge(&[&sound[..], &[resumed(0)]].concat());
        assert_eq!(verdict.holes, 1);
    }

    #[test]
    fn a_told_gap_is_a_finding_but_no_hole() {
        let gap = Entry::Gap { recipient: B, first: 1, last: 3 };
        let verdict = judge(&[sent(1), accepted(1), gap, delivered(1, 4)]);
        assert_eq!((verdict.gaps, verdict.holes), (1, 0));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn an_id_that_changes_is_found_in_answers_and_deliveries() {
        let other = Entry::Accepted { message: name(1), message_id: 7 };
        let verdict = judge(&[sent(1), accepted(1), sent(1), other, delivered(1, 1)]);
        assert_eq!(verdict.ids_changed, 2);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn what_nobody_sent_is_foreign() {
        let verdict = judge(&[delivered(9, 1), Entry::Foreign { recipient: B, sequence: 2 }]);
        assert_eq!((verdict.foreign, verdict.delivered), (2, 0));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_message_at_the_wrong_recipient_is_foreign_and_lost() {
        let stray =
            Entry::Delivered { message: name(1), recipient: A, sequence: 1, message_id: 101 };
        let verdict = judge(&[sent(1), accepted(1), stray]);
        assert_eq!((verdict.foreign, verdict.lost), (1, 1));
    }

    #[test]
    fn a_full_history_says_that_it_is_incomplete() {
        let mut history = History::new(1);
        assert!(history.has_room());
        (0..2_000).for_each(|_| history.record(sent(1)));
        assert!(!history.has_room());
        let verdict = check(&history, 2, |sender| sender ^ 1);
        assert!(verdict.unlogged > 0 && !verdict.is_clean());
    }
}
