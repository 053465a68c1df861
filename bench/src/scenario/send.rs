//! Sends one message, by hand, and does not rest until it is durable.
//!
//! The message keeps its client message id over reconnects and restarts of edge and router, so it is stored once.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::Args;

use super::hand::{Errand, Hand, HandFlags, device, plain, user};
use super::{Stop, parse_seconds};
use crate::client::Note;
use crate::clock;
use crate::failure::Failure;

/// What is sent to whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    hand: HandFlags,
    /// Who gets it
    #[arg(long, value_name = "USER", value_parser = user)]
    to: String,
    /// Which of your devices sends; not one that listens, or it would be disconnected
    #[arg(long, default_value = "cli-send", value_parser = device)]
    device: String,
    /// Give up after this time
    #[arg(long, default_value = "5m", value_parser = parse_seconds)]
    give_up_after: Duration,
    /// The message
    text: String,
}

/// Runs it.
///
/// # Errors
/// [`Failure`] when the message was refused for good, or nobody answered in time.
pub(crate) fn run(args: &SendArgs, stop: &Stop) -> Result<(), Failure> {
    let mut hand = Hand::new(&args.hand, &args.device, Sending { message_id: None })?;
    let now = clock::now();
    hand.session.send(now, args.to.as_str().into(), args.text.clone().into_bytes(), None);
    if hand.run(now + args.give_up_after, stop)? {
        let message_id = hand.errand.message_id.unwrap_or_default();
        writeln!(io::stdout(), "stored as message {message_id}")?;
        return Ok(());
    }
    Err(Failure::Unreachable(if stop.is_asked() {
        "interrupted before the message was acknowledged; it may or may not be stored".to_owned()
    } else {
        format!(
            "--give-up-after: not acknowledged within {:?}; the message may or may not be stored",
            args.give_up_after
        )
    }))
}

struct Sending {
    message_id: Option<u64>,
}

impl Errand for Sending {
    fn handle_note(&mut self, note: &Note<'_>) -> Result<(), Failure> {
        if let Note::Accepted { message_id, .. } = note {
            self.message_id = Some(*message_id);
        }
        if let Note::Rejected { error, .. } = note {
            let sentence = plain(error);
            return Err(Failure::Broken(format!("the message was refused: {sentence}")));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.message_id.is_some()
    }

    /// The user's messages are for the devices that listen; taking them here would tell their senders that they
    /// had arrived.
    fn takes_deliveries(&self) -> bool {
        false
    }
}
