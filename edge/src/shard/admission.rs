//! Who is let in: the token of a request, of Connect and of Refresh.
//!
//! Where a token cannot be judged at once the auth thread is asked. A request or a Connect then waits for the answer, and
//! what the client says meanwhile is held; a session goes on while its Refresh waits.

use hawser_proto::client::error::Code;
use hawser_proto::view::client::{Connect, Refresh, Refreshed, ServerFrame};

use super::Shard;
use crate::auth::ask::{Ask, Verdict};
use crate::auth::{Checked, Identity, Refused, UserId};
use crate::conn::{Asking, CloseReason, ConnKey, Opening, Phase, Step};
use crate::http;
use crate::limits;
use crate::timer::{Now, TICK, Tick};

/// What the token of a request comes to.
pub(super) enum HeadToken {
    /// There is none, so that Connect has to bring it; the echo path asks nobody.
    None,
    /// It is good.
    Of(Box<Identity>),
    /// The auth thread was asked.
    Asked,
}

/// The auth thread answers within `--auth-timeout`; this much later it is given up.
const VERDICT_GRACE: std::time::Duration = TICK.saturating_mul(20);

impl Shard {
    /// Looks for a token in the head of a request, and whose it is.
    pub(super) fn check_head(
        &mut self,
        now: Now,
        key: ConnKey,
        head: &[u8],
        upgrade: &http::Upgrade,
    ) -> Result<HeadToken, http::Refusal> {
        if matches!(upgrade.route, http::Route::Echo(_)) {
            return Ok(HeadToken::None);
        }
        let Some(token) = http::token_of(head, upgrade)? else { return Ok(HeadToken::None) };
        match self.check_token(now, key, &token, "") {
            Checked::Now(Ok(identity)) => Ok(HeadToken::Of(Box::new(identity))),
            Checked::Now(Err(refused)) => Err(self.refusal_of(refused)),
            Checked::Ask => Ok(HeadToken::Asked),
        }
    }

    /// The answer to a request whose token is refused.
    fn refusal_of(&self, refused: Refused) -> http::Refusal {
        self.counters.token_refused(refused);
        if refused.is_retryable() {
            http::Refusal::unchecked(refused.text())
        } else {
            http::Refusal::unauthorized(refused.text())
        }
    }

    /// Whose token this is; [`Checked::Ask`] when the auth thread was asked, and answers.
    fn check_token(&mut self, now: Now, key: ConnKey, token: &str, device: &str) -> Checked {
        let checked = self.auth.check(now.unix_ms, token);
        if checked != Checked::Ask {
            return checked;
        }
        let Some(conn) = self.conns.get(key) else { return checked };
        let ask = Ask {
            shard: self.index,
            key,
            token: token.into(),
            device: device.into(),
            address: conn.peer.address().ip(),
            asked_at_ms: now.unix_ms,
        };
        self.auth.try_ask(ask).map_or_else(|refused| Checked::Now(Err(refused)), |()| Checked::Ask)
    }

    /// Stops reading from a client until the auth thread has answered.
    pub(super) fn await_verdict(&mut self, now: Now, key: ConnKey, step: Step) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.phase = Phase::Asking(Box::new(Asking { step, held: Vec::new() }));
        let patience = self.config.admission.auth_timeout + VERDICT_GRACE;
        self.schedule(key, now.tick.after(patience));
    }

    pub(super) fn is_asking(&self, key: ConnKey) -> bool {
        self.conns.get(key).is_some_and(|conn| matches!(conn.phase, Phase::Asking(_)))
    }

    /// Keeps what came while the auth thread is being asked.
    pub(super) fn hold(&mut self, key: ConnKey, bytes: &[u8]) -> Result<(), CloseReason> {
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        let Phase::Asking(asking) = &mut conn.phase else { return Ok(()) };
        if asking.held.len() + bytes.len() > limits::HELD_BYTES_MAX {
            return Err(CloseReason::EarlyFrames);
        }
        asking.held.extend_from_slice(bytes);
        Ok(())
    }

    /// The auth thread has answered; the connection may be gone, or wait no more.
    pub(super) fn handle_verdict(&mut self, now: Now, verdict: Verdict) {
        let Verdict { key, outcome } = verdict;
        let refreshes = self.refreshing.remove(&key);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let mut held = match &mut conn.phase {
            Phase::Asking(asking) => std::mem::take(&mut asking.held),
            Phase::Session(_) if refreshes => return self.finish_refresh(now, key, outcome),
            Phase::Proxy { .. }
            | Phase::Head { .. }
            | Phase::Echo
            | Phase::Connecting(..)
            | Phase::Session(_)
            | Phase::Closing(_) => return,
        };
        self.finish_asking(now, key, outcome);
        if !held.is_empty() {
            self.handle_input(now, key, &mut held);
        }
        self.update_receiving(key);
    }

    fn finish_asking(&mut self, now: Now, key: ConnKey, outcome: Result<Identity, Refused>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Asking(asking) = &conn.phase else { return };
        match &asking.step {
            Step::Upgrade(upgrade) => {
                let upgrade = upgrade.clone();
                match outcome {
                    Ok(identity) => self.open(now, key, &upgrade, Some(Box::new(identity))),
                    Err(refused) => {
                        let refusal = self.refusal_of(refused);
                        self.refuse(now, key, &refusal);
                    }
                }
            }
            Step::Connect(opening, known) => {
                let (opening, known) = (*opening, *known);
                conn.phase = Phase::Connecting(opening.codec, None);
                let ended = match fit(outcome, known, &opening.device) {
                    Ok(identity) => self.begin_session(now, key, opening, &identity),
                    Err(refused) => Err(self.tell_refused(key, refused)),
                };
                if let Err(reason) = ended {
                    self.close(now, key, reason);
                }
            }
        }
    }

    /// Opens the session of a Connect whose fields are in order, once it is known whose its token is: its own, else that of
    /// the request.
    pub(super) fn admit(
        &mut self,
        now: Now,
        key: ConnKey,
        connect: &Connect<'_>,
        opening: Opening,
    ) -> Result<(), CloseReason> {
        let known = match self.conns.get(key).map(|conn| &conn.phase) {
            Some(Phase::Connecting(_, Some(identity))) => Some(**identity),
            _ => None,
        };
        let checked = match known {
            Some(known) if connect.token.is_empty() => Checked::Now(Ok(known)),
            _ => self.check_token(now, key, connect.token, connect.device_id),
        };
        let known = known.map(|known| known.user);
        match checked {
            Checked::Ask => {
                self.await_verdict(now, key, Step::Connect(opening, known));
                Ok(())
            }
            Checked::Now(outcome) => match fit(outcome, known, &opening.device) {
                Ok(identity) => self.begin_session(now, key, opening, &identity),
                Err(refused) => Err(self.tell_refused(key, refused)),
            },
        }
    }

    /// Tells a client why its Connect is refused; what follows is the end.
    fn tell_refused(&mut self, key: ConnKey, refused: Refused) -> CloseReason {
        self.counters.token_refused(refused);
        self.tell_error(key, refused.code().into(), refused.text(), refused.is_retryable());
        if refused.is_retryable() {
            CloseReason::TokenUnchecked
        } else {
            CloseReason::Unauthenticated
        }
    }

    pub(super) fn handle_refresh(&mut self, now: Now, key: ConnKey, refresh: Refresh<'_>) {
        let Some(session) = self.session(key) else { return };
        let device = session.device;
        if self.refreshing.contains(&key) {
            let text = "the Refresh before has no answer yet";
            return self.tell_error(key, Code::Overloaded.into(), text, true);
        }
        match self.check_token(now, key, refresh.token, &device) {
            Checked::Now(checked) => self.finish_refresh(now, key, checked),
            Checked::Ask => {
                self.refreshing.insert(key);
            }
        }
    }

    /// Lets the session go on with the newer token, or tells why not: then the one before still counts.
    fn finish_refresh(&mut self, now: Now, key: ConnKey, outcome: Result<Identity, Refused>) {
        let Some(session) = self.session(key) else { return };
        let (user, device) = (session.user, session.device);
        match fit(outcome, Some(user), &device) {
            Ok(identity) => {
                self.prolong(now, key, &identity);
                self.counters.refreshed.add(1);
                let token_expires_at_ms = self.token_expires_at_ms(now, key);
                self.tell(key, &ServerFrame::Refreshed(Refreshed { token_expires_at_ms }));
            }
            Err(refused) => {
                self.counters.token_refused(refused);
                self.tell_error(key, refused.code().into(), refused.text(), refused.is_retryable());
            }
        }
    }

    /// What a newer token changes: when the session ends, and what it may do.
    fn prolong(&mut self, now: Now, key: ConnKey, identity: &Identity) {
        let token_ends = self.token_ends(now, identity);
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.token_ends = token_ends;
        let Phase::Session(session) = &mut conn.phase else { return };
        session.grant = identity.grant;
        // The new end may be earlier than what stands in the wheel, or the old one may stand there. One that was told to
        // go has its deadline, and it is near.
        if session.leaving.is_some() {
            return;
        }
        if session.registered {
            return self.schedule_silence(now, key);
        }
        let timeout_ms = self.config.connect_timeout.as_millis() as i64;
        let deadline = now.tick_at(session.connected_at.unix_ms().saturating_add(timeout_ms));
        self.schedule_session(key, deadline);
    }

    /// When a session with this token is over.
    pub(super) fn token_ends(&self, now: Now, identity: &Identity) -> Tick {
        let ends = |at: i64| now.tick_at(at.saturating_add(self.auth.skew_ms()));
        identity.expires_at_ms.map_or(Tick::NEVER, ends)
    }

    /// What the client is told of that, to a tenth of a second; 0: never.
    pub(super) fn token_expires_at_ms(&self, now: Now, key: ConnKey) -> i64 {
        match self.conns.get(key).map(|conn| conn.token_ends) {
            None | Some(Tick::NEVER) => 0,
            Some(ends) => now.unix_ms_at(ends).saturating_sub(self.auth.skew_ms()),
        }
    }
}

/// Whether a token is of the user who is `known` already, if anybody is, and good for the device.
fn fit(
    outcome: Result<Identity, Refused>,
    known: Option<UserId>,
    device: &str,
) -> Result<Identity, Refused> {
    let identity = outcome?;
    if known.is_some_and(|user| user != identity.user) {
        Err(Refused::OtherUser)
    } else if !identity.fits_device(device) {
        Err(Refused::Device)
    } else {
        Ok(identity)
    }
}
