//! Prints a user's messages, by hand: one line each, acknowledged once it is printed.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::Args;
use hawser_proto::client::gap::Reason;
use hawser_proto::view::client::Gap;

use super::hand::{Errand, Hand, HandFlags, device};
use super::{Stop, parse_seconds};
use crate::client::Note;
use crate::clock;
use crate::failure::Failure;

/// Without `--seconds`: a month. Every run has an end.
const SECONDS_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Who listens.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListenArgs {
    #[command(flatten)]
    hand: HandFlags,
    /// Which of your devices this is; each gets every message once
    #[arg(long, default_value = "cli", value_parser = device)]
    device: String,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this time
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<Duration>,
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when the server refuses for good, or fewer than `--count` messages came in `--seconds`.
pub(crate) fn run(args: &ListenArgs, stop: &Stop) -> Result<(), Failure> {
    let mut hand = Hand::new(&args.hand, &args.device, Listening { left: args.count })?;
    let until = clock::now() + args.seconds.unwrap_or(SECONDS_MAX);
    let done = hand.run(until, stop)?;
    match hand.errand.left {
        Some(left) if !done && !stop.is_asked() => {
            Err(Failure::Broken(format!("--count: {left} more messages did not come in time")))
        }
        _ => Ok(()),
    }
}

struct Listening {
    /// Messages until the end; `None`: there is none.
    left: Option<u64>,
}

impl Errand for Listening {
    fn handle_note(&mut self, note: &Note<'_>) -> Result<(), Failure> {
        if let Note::Delivered(deliver) = note {
            let (from, text) = (printable(deliver.from.as_bytes()), printable(deliver.payload));
            // Flushed before the acknowledgement goes out: a message that was not shown is not taken.
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{from}: {text}").and_then(|()| stdout.flush())?;
            self.left = self.left.map(|left| left.saturating_sub(1));
        }
        if let Note::Gap(gap) = note {
            eprintln!("{}", gap_sentence(gap));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    fn takes_deliveries(&self) -> bool {
        true
    }
}

fn gap_sentence(gap: &Gap) -> String {
    let why = match Reason::try_from(gap.reason) {
        Ok(Reason::Expired) => "they expired",
        Ok(Reason::InboxFull) => "the inbox was full",
        Ok(Reason::NotHeld) => "they are older than what is kept",
        Ok(Reason::Unspecified) | Err(_) => "no reason was given",
    };
    format!("messages {} to {} will never come: {why}", gap.first_sequence, gap.last_sequence)
}

/// Text as it stands, but for control characters, which could take the terminal over; other bytes as `\x..`.
fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        Ok(text) => {
            let escaped = |character: char| {
                if character.is_control() {
                    character.escape_default().collect::<String>()
                } else {
                    character.to_string()
                }
            };
            text.chars().map(escaped).collect()
        }
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_printed_as_it_is_and_the_rest_is_escaped() {
        assert_eq!(printable("grüß dich".as_bytes()), "grüß dich");
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable(b"\xff\x00a"), "\\xff\\x00a");
    }

    #[test]
    fn a_gap_is_told_with_its_reason() {
        let gap = Gap { first_sequence: 3, last_sequence: 9, reason: Reason::Expired.into() };
        assert_eq!(gap_sentence(&gap), "messages 3 to 9 will never come: they expired");
        let gap = Gap { reason: 77, ..gap };
        assert!(gap_sentence(&gap).ends_with("no reason was given"));
    }
}
