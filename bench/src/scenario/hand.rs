//! One client for hands: what `send` and `listen` share. It connects again by itself and says plainly what goes on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use hawser_proto::client::error::Code;
use hawser_proto::view::client::Error;

use super::{Stop, turn_end};
use crate::client::{
    Ending, Fleet, Handler, Identity, Message, Note, Outgoing, SUBPROTOCOL, Session, code_name,
};
use crate::clock;
use crate::failure::Failure;
use crate::target::Target;

/// The only client of its fleet.
const CLIENT: usize = 0;
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// First and longest pause before the next connect; it doubles, and each is drawn from its upper half.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(100);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(3);
/// For the server's answer to our Close.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Flags of both.
#[derive(Clone, Debug, Args)]
pub(super) struct HandFlags {
    /// WebSocket URL of an edge
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/ws")]
    target: Target,
    /// PEM file with whom to trust at a wss:// URL, which needs it
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Who you are; with an edge in --dev-auth also the token
    #[arg(long = "as", value_name = "USER", value_parser = user)]
    user: String,
    /// Token, where it is not the user's name
    #[arg(long, env = "HAWSER_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// A user id: 1 to 64 bytes.
pub(super) fn user(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 64 {
        return Err(format!("a user id has 1 to 64 bytes, this has {}", text.len()));
    }
    Ok(text.to_owned())
}

/// A device id: 1 to 40 bytes.
pub(super) fn device(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 40 {
        return Err(format!("a device id has 1 to 40 bytes, this has {}", text.len()));
    }
    Ok(text.to_owned())
}

/// What a note means to the command. Told to [`Hand::run`].
pub(super) trait Errand {
    /// Takes one note. An error ends the run with it.
    fn handle_note(&mut self, note: &Note<'_>) -> Result<(), Failure>;
    /// What there is to do is done.
    fn is_done(&self) -> bool;
    /// Whether deliveries are to be acknowledged.
    fn takes_deliveries(&self) -> bool;
}

/// One session, its reconnects, and the errand it runs.
pub(super) struct Hand<E> {
    pub session: Session,
    pub errand: E,
    target: Target,
    connect_at: Option<Instant>,
    attempts: u32,
    /// The trouble that was told last; the same is not told again and again.
    told: Option<String>,
    failure: Option<Failure>,
    random: fastrand::Rng,
}

impl<E: Errand> Hand<E> {
    /// # Errors
    /// When it is not told whom to trust.
    pub(super) fn new(flags: &HandFlags, device: &str, errand: E) -> Result<Self, Failure> {
        if flags.target.tls.is_some() && flags.tls_ca.is_none() {
            return Err(Failure::Usage(
                "--tls-ca: needed with a wss:// URL: a token is not for everybody".to_owned(),
            ));
        }
        let mut random = fastrand::Rng::with_seed(clock::random_seed());
        let identity = Identity {
            token: flags.token.clone().unwrap_or_else(|| flags.user.clone()),
            device: device.to_owned(),
            id_prefix: format!("{:032x}-", random.u128(..)),
        };
        Ok(Self {
            session: Session::new(identity, None),
            errand,
            target: flags.target.trusting(flags.tls_ca.as_deref(), 0)?,
            connect_at: None,
            attempts: 0,
            told: None,
            failure: None,
            random,
        })
    }

    /// Runs until the errand is done, `until`, or a signal; then says goodbye. Returns whether the errand is done.
    ///
    /// # Errors
    /// What the errand or the server calls final.
    pub(super) fn run(&mut self, until: Instant, stop: &Stop) -> Result<bool, Failure> {
        let seed = self.random.u64(..);
        let mut fleet = Fleet::new(self.target.clone(), Some(SUBPROTOCOL), 1, seed)?;
        let mut ticked_at = clock::now();
        self.connect_at = Some(ticked_at);
        while !self.errand.is_done() && self.failure.is_none() && !stop.is_asked() {
            let now = clock::now();
            if now >= until {
                break;
            }
            if self.connect_at.is_some_and(|at| at <= now) {
                self.connect_at = None;
                if let Err(error) = fleet.connect(now, CLIENT) {
                    self.handle_closed(now, CLIENT, Ending::Io(error));
                }
            }
            if now.saturating_duration_since(ticked_at) >= TICK_INTERVAL {
                ticked_at = now;
                self.tick(now, &mut fleet);
            }
            let until = turn_end(now, until).min(self.connect_at.unwrap_or(until));
            fleet.turn(until, self)?;
        }
        self.say_goodbye(&mut fleet)?;
        self.failure.take().map_or(Ok(self.errand.is_done()), Err)
    }

    fn tick(&mut self, now: Instant, fleet: &mut Fleet) {
        let Some(out) = fleet.outgoing(CLIENT) else { return };
        let in_time = self.session.handle_tick(now, out);
        self.session.take_submitted();
        if !in_time {
            fleet.abandon(CLIENT);
            let late = std::io::Error::other("the edge owes an answer for too long");
            self.handle_closed(now, CLIENT, Ending::Io(late));
        }
    }

    /// Closes in order, so that the last acknowledgement arrives.
    fn say_goodbye(&mut self, fleet: &mut Fleet) -> Result<(), Failure> {
        if let Some(out) = fleet.outgoing(CLIENT) {
            out.push_close(1000);
        }
        let until = clock::now() + GOODBYE_TIMEOUT;
        while fleet.open() > 0 && clock::now() < until {
            fleet.turn(turn_end(clock::now(), until), self)?;
        }
        Ok(())
    }

    /// Says what is wrong, once.
    fn tell(&mut self, trouble: String) {
        if self.told.as_ref() != Some(&trouble) {
            eprintln!("{trouble}; trying again");
            self.told = Some(trouble);
        }
    }

    fn handle_note(&mut self, note: &Note<'_>, out: &mut Outgoing) {
        match note {
            Note::Welcomed { .. } => {
                self.attempts = 0;
                if self.told.take().is_some() {
                    eprintln!("connected");
                }
            }
            Note::GoAway(go_away) => {
                self.tell(format!("the edge is leaving ({})", go_away.reason));
                out.push_close(1000);
            }
            Note::Refused { error, .. } => self.tell(format!("not accepted yet: {}", plain(error))),
            Note::Failed(error) if error.retryable => {
                self.tell(plain(error));
                out.push_close(1000);
            }
            Note::Failed(error) => {
                let sentence = if error.code == i32::from(Code::Replaced) {
                    "another connection of this user and device took over".to_owned()
                } else {
                    plain(error)
                };
                self.failure = Some(Failure::Broken(sentence));
            }
            Note::Accepted { .. }
            | Note::Rejected { .. }
            | Note::Delivered(_)
            | Note::Repeated { .. }
            | Note::Hole { .. }
            | Note::Gap(_)
            | Note::Receipt(_)
            | Note::Nothing => {}
        }
        if let Err(failure) = self.errand.handle_note(note) {
            self.failure = Some(failure);
        }
    }
}

impl<E: Errand> Handler for Hand<E> {
    fn handle_open(&mut self, now: Instant, _: usize, out: &mut Outgoing) {
        self.session.handle_open(now, out);
    }

    fn handle_message(&mut self, now: Instant, _: usize, message: Message<'_>, out: &mut Outgoing) {
        match self.session.handle_message(now, message.payload, out) {
            Ok(note) => self.handle_note(&note, out),
            Err(error) => {
                self.failure = Some(Failure::Broken(format!("the edge sent no frame: {error}")));
            }
        }
    }

    fn handle_drained(&mut self, now: Instant, _: usize, out: &mut Outgoing) {
        if self.errand.takes_deliveries() {
            self.session.handle_drained(now, out);
        }
    }

    fn handle_closed(&mut self, now: Instant, _: usize, ending: Ending) {
        self.session.handle_closed();
        if !matches!(ending, Ending::Ours) {
            self.tell(format!("{}: {ending}", self.target));
        }
        let longest = RECONNECT_PAUSE_MIN * 2_u32.saturating_pow(self.attempts.min(16));
        self.attempts += 1;
        let pause = longest.min(RECONNECT_PAUSE_MAX).mul_f64(0.5 + 0.5 * self.random.f64());
        self.connect_at = Some(now + pause);
    }
}

/// An Error of the server for people: its own words, and the code for looking up.
pub(super) fn plain(error: &Error<'_>) -> String {
    match error.message {
        "" => code_name(error).to_owned(),
        message => format!("{message} ({})", code_name(error)),
    }
}
