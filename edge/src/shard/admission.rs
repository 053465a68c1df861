//! Who is let in: the token of a request, of Connect and of Refresh.

use hawser_proto::view::client::{Connect, Refresh, Refreshed, ServerFrame};

use super::Shard;
use crate::auth::{Identity, Refused};
use crate::conn::{CloseReason, ConnKey, Phase};
use crate::http;
use crate::timer::{Now, Tick};

impl Shard {
    /// Who the token of a request names; `None` when it brings none, so that Connect has to. The echo path asks nobody.
    pub(super) fn check_head(
        &mut self,
        now: Now,
        head: &[u8],
        upgrade: &http::Upgrade,
    ) -> Result<Option<Box<Identity>>, http::Refusal> {
        if matches!(upgrade.route, http::Route::Echo(_)) {
            return Ok(None);
        }
        let Some(token) = http::token_of(head, upgrade)? else { return Ok(None) };
        match self.auth.check(now.unix_ms, &token) {
            Ok(identity) => Ok(Some(Box::new(identity))),
            Err(refused) => {
                self.counters.token_refused(refused);
                Err(if refused.is_retryable() {
                    http::Refusal::unchecked(refused.text())
                } else {
                    http::Refusal::unauthorized(refused.text())
                })
            }
        }
    }

    /// Who says this Connect: its own token, else that of the request.
    pub(super) fn check_connect(
        &mut self,
        now: Now,
        key: ConnKey,
        connect: &Connect<'_>,
    ) -> Result<Identity, Refused> {
        let phase = self.conns.get(key).map(|conn| &conn.phase);
        let known = match phase {
            Some(Phase::Connecting(_, Some(identity))) => Some(**identity),
            _ => None,
        };
        let identity = match known {
            Some(known) if connect.token.is_empty() => known,
            known => {
                let identity = self.auth.check(now.unix_ms, connect.token)?;
                if known.is_some_and(|known| known.user != identity.user) {
                    return Err(Refused::OtherUser);
                }
                identity
            }
        };
        if identity.fits_device(connect.device_id) { Ok(identity) } else { Err(Refused::Device) }
    }

    /// Tells a client why its Connect is refused; what follows is the end.
    pub(super) fn tell_refused(&mut self, key: ConnKey, refused: Refused) -> CloseReason {
        self.counters.token_refused(refused);
        self.tell_error(key, refused.code().into(), refused.text(), refused.is_retryable());
        if refused.is_retryable() {
            CloseReason::TokenUnchecked
        } else {
            CloseReason::Unauthenticated
        }
    }

    pub(super) fn handle_refresh(&mut self, now: Now, key: ConnKey, refresh: Refresh<'_>) {
        let checked = self.auth.check(now.unix_ms, refresh.token);
        self.finish_refresh(now, key, checked);
    }

    /// Lets the session go on with the newer token, or tells why not: then the one before still counts.
    pub(super) fn finish_refresh(
        &mut self,
        now: Now,
        key: ConnKey,
        checked: Result<Identity, Refused>,
    ) {
        let Some(session) = self.conns.get(key).and_then(|conn| conn.session()) else { return };
        let checked = checked.and_then(|identity| {
            if identity.user != session.user {
                Err(Refused::OtherUser)
            } else if !identity.fits_device(&session.device) {
                Err(Refused::Device)
            } else {
                Ok(identity)
            }
        });
        match checked {
            Ok(identity) => {
                let token_ends = self.token_ends(now, &identity);
                // The new end may be earlier than what stands in the wheel, or the old one may stand there.
                let deadline = if session.registered {
                    now.tick.after(self.config.silence_max(session.mode))
                } else {
                    session.connected_at.after(self.config.connect_timeout)
                };
                let Some(session) = self.session(key) else { return };
                session.token_ends = token_ends;
                session.grant = identity.grant;
                self.schedule_session(key, deadline);
                self.counters.refreshed.add(1);
                let token_expires_at_ms = self.token_expires_at_ms(now, token_ends);
                self.tell(key, &ServerFrame::Refreshed(Refreshed { token_expires_at_ms }));
            }
            Err(refused) => {
                self.counters.token_refused(refused);
                self.tell_error(key, refused.code().into(), refused.text(), refused.is_retryable());
            }
        }
    }

    /// When a session with this token is over.
    pub(super) fn token_ends(&self, now: Now, identity: &Identity) -> Tick {
        let ends = |at: i64| now.tick_at(at.saturating_add(self.auth.skew_ms()));
        identity.expires_at_ms.map_or(Tick::NEVER, ends)
    }

    /// What the client is told of that, to a tenth of a second; 0: never.
    pub(super) fn token_expires_at_ms(&self, now: Now, token_ends: Tick) -> i64 {
        if token_ends == Tick::NEVER {
            return 0;
        }
        now.unix_ms_at(token_ends).saturating_sub(self.auth.skew_ms())
    }
}
