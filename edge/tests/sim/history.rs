//! What was sent, acknowledged and delivered, and what was promised about it.

use std::collections::BTreeMap;

/// A message, as its sender knows it.
#[derive(Debug)]
struct Sent {
    to: String,
    /// An error was the answer at least once: its place in the order is that of a repetition.
    failed: bool,
    /// The id that came with the acknowledgement.
    message_id: Option<u64>,
}

/// Names a message: sending device, and its number there.
pub(crate) type MessageName = (String, u32);

/// Everything that clients have seen in one run.
#[derive(Debug, Default)]
pub(crate) struct History {
    sent: BTreeMap<MessageName, Sent>,
    /// By device of a recipient, in order of arrival: what passed its sequence check.
    delivered: BTreeMap<String, Vec<(MessageName, u64)>>,
    /// Broken promises, as sentences.
    pub(crate) violations: Vec<String>,
    /// What was counted, for a look at what runs exercise.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// What a message carries: its own name and its recipient.
pub(crate) fn payload(name: &MessageName, to: &str, padding: usize) -> Vec<u8> {
    format!("{}/{}/{to}/{}", name.0, name.1, "x".repeat(padding)).into_bytes()
}

/// From what a message carries.
pub(crate) fn name_of_payload(payload: &[u8]) -> Option<MessageName> {
    let mut parts = std::str::from_utf8(payload).ok()?.split('/');
    Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?))
}

/// As a client message id.
pub(crate) fn client_message_id(name: &MessageName) -> String {
    format!("{}/{}", name.0, name.1)
}

/// From a client message id.
pub(crate) fn parse_name(id: &str) -> Option<MessageName> {
    let (device, number) = id.split_once('/')?;
    Some((device.to_owned(), number.parse().ok()?))
}

impl History {
    /// A promise was broken.
    pub(crate) fn violation(&mut self, ms: u64, sentence: String) {
        self.violations.push(format!("{ms} ms: {sentence}"));
    }

    /// One more of these.
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A client means to send.
    pub(crate) fn note_sent(&mut self, name: &MessageName, to: &str) {
        let sent = Sent { to: to.to_owned(), failed: false, message_id: None };
        self.sent.insert(name.clone(), sent);
    }

    /// A send was answered with an error, whether or not the answer reached its sender.
    pub(crate) fn note_failed(&mut self, name: &MessageName) {
        if let Some(sent) = self.sent.get_mut(name) {
            sent.failed = true;
        }
    }

    /// A send was acknowledged.
    pub(crate) fn note_acknowledged(&mut self, name: &MessageName, message_id: u64) {
        self.count("sends acknowledged");
        if let Some(sent) = self.sent.get_mut(name) {
            sent.message_id = Some(message_id);
        }
    }

    /// A message passed a device's sequence check.
    pub(crate) fn note_delivered(
        &mut self,
        ms: u64,
        device: &str,
        user: &str,
        payload: &[u8],
        id: u64,
    ) {
        self.count("delivered");
        let text = std::str::from_utf8(payload).unwrap_or_default();
        let mut parts = text.split('/');
        let sender = parts.next().unwrap_or_default().to_owned();
        let number = parts.next().and_then(|number| number.parse().ok()).unwrap_or_default();
        let to = parts.next().unwrap_or_default();
        if to != user {
            self.violation(ms, format!("{device} of {user} got {text}"));
        }
        self.delivered.entry(device.to_owned()).or_default().push(((sender, number), id));
    }

    /// Whether `devices` (device, user) have got everything that was acknowledged, and all is acknowledged.
    pub(crate) fn is_complete(&self, devices: &[(String, String)]) -> bool {
        self.sent.values().all(|sent| sent.message_id.is_some())
            && devices.iter().all(|(device, user)| {
                let expected = self.sent.values().filter(|sent| sent.to == *user).count();
                self.delivered.get(device).map_or(0, Vec::len) >= expected
            })
    }

    /// Holds what was seen against what is promised, once everything has settled.
    pub(crate) fn check(&mut self, ms: u64, devices: &[(String, String)]) {
        let mut found = Vec::new();
        for (name, sent) in &self.sent {
            let Some(message_id) = sent.message_id else {
                found.push(format!("{name:?} was never acknowledged"));
                continue;
            };
            for (device, _) in devices.iter().filter(|(_, user)| *user == sent.to) {
                let delivered = self.delivered.get(device).map_or(&[][..], Vec::as_slice);
                let copies: Vec<u64> =
                    delivered.iter().filter(|(n, _)| n == name).map(|(_, id)| *id).collect();
                if copies != [message_id] {
                    found.push(format!(
                        "{name:?} was acknowledged as {message_id:x}, and {device} got {copies:x?}"
                    ));
                }
            }
        }
        for (device, delivered) in &self.delivered {
            self.check_order(device, delivered, &mut found);
        }
        found.into_iter().for_each(|sentence| self.violation(ms, sentence));
    }

    /// Messages of one sending device arrive in the order in which they were sent, but for those that were
    /// refused in between.
    fn check_order(&self, device: &str, delivered: &[(MessageName, u64)], found: &mut Vec<String>) {
        let mut last: BTreeMap<&str, u32> = BTreeMap::new();
        for (name, _) in delivered {
            let last = last.entry(&name.0).or_default();
            let failed = self.sent.get(name).is_some_and(|sent| sent.failed);
            if name.1 < *last && !failed {
                found.push(format!("{device} got {name:?} after number {last} of that sender"));
            }
            *last = (*last).max(name.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run in which `a` sent two messages to `bob`, of which these were delivered.
    fn checked(delivered: &[(u32, u64)], fail_first: bool) -> Vec<String> {
        let mut history = History::default();
        let name = |number| ("a".to_owned(), number);
        for number in [1, 2] {
            history.note_sent(&name(number), "bob");
            if fail_first && number == 1 {
                history.note_failed(&name(number));
            }
            history.note_acknowledged(&name(number), u64::from(number));
        }
        for (number, id) in delivered {
            history.note_delivered(0, "b", "bob", &payload(&name(*number), "bob", 3), *id);
        }
        history.check(0, &[("b".to_owned(), "bob".to_owned())]);
        history.violations
    }

    #[test]
    fn what_was_acknowledged_has_to_arrive_once_in_order_under_its_id() {
        assert!(checked(&[(1, 1), (2, 2)], false).is_empty());
        assert_eq!(checked(&[(2, 2)], false).len(), 1, "lost");
        assert_eq!(checked(&[(1, 1), (2, 2), (2, 3)], false).len(), 1, "stored twice");
        assert_eq!(checked(&[(2, 2), (1, 1)], false).len(), 1, "out of order");
        assert!(checked(&[(2, 2), (1, 1)], true).is_empty(), "refused in between");
        assert_eq!(checked(&[(1, 1), (2, 7)], false).len(), 1, "another id");
    }
}
