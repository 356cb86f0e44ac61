//! How sessions end: output is read to its end, the record is written, and only then are clients
//! told, but for those that want to know before.

use std::time::{Duration, Instant};

use super::connection::Role;
use super::session::Taken;
use super::{MAIN, Server};
use crate::shim::clock::Timestamp;
use crate::shim::exit::{EXIT_VERSION, ExitRecord, Usage};
use crate::shim::protocol::{Exited, Reply};
use crate::shim::{FALLBACK_EXIT_FILE, SOCKET_FILE};
use crate::{Delete, chain};

/// How often a record that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long, before the fallback in the run directory has to do.
const GIVE_UP: Duration = Duration::from_secs(60);
/// The most read from a stream whose process is gone: more than any pipe or terminal holds.
const MAX_LEFT: usize = 16 << 20;

impl Server {
    /// Reads what is left in the streams of a session whose process is gone.
    fn drain(&mut self, i: usize) {
        for n in 0..2 {
            let mut total = 0;
            while total < MAX_LEFT {
                let Some(session) = self.sessions.get_mut(i).and_then(Option::as_mut) else {
                    return;
                };
                match session.take(n) {
                    Taken::Data(data) => {
                        total += data.len();
                        self.distribute(i, n, &data);
                    }
                    Taken::Nothing | Taken::End => break,
                }
            }
        }
    }

    /// An exec's process is gone: what it wrote is told, then how it ended.
    pub(super) fn drain_exec(&mut self, i: usize) {
        self.drain(i);
        if let Some(session) = self.sessions.get_mut(i).and_then(Option::as_mut) {
            // A child that it left in the background may hold its output open; nobody waits for
            // that one.
            session.outputs = [None, None];
        }
        self.end_exec(i);
    }

    /// Tells the client of an exec that is over.
    pub(super) fn end_exec(&mut self, i: usize) {
        let Some(session) = self.sessions.get(i).and_then(Option::as_ref) else {
            return;
        };
        if i == MAIN || !session.is_over() {
            return;
        }
        let (code, signal) = session.ended.unwrap_or((255, None));
        let exited = Exited {
            code,
            signal,
            oom_killed: false,
            at: Timestamp::now(),
        };
        if let Some(owner) = session.owner
            && let Some(connection) = self.connections.get_mut(owner).and_then(Option::as_mut)
        {
            connection.say(&Reply::Exited(exited));
            connection.closing = true;
        }
        self.sessions[i] = None;
    }

    /// The container's process is gone. Collects what is left and begins to record it.
    pub(super) fn container_ended(&mut self, code: i32, signal: Option<i32>) {
        let finished_at = Timestamp::now();
        let group = self
            .container
            .as_ref()
            .and_then(|container| container.cgroup().ok());
        let (mut usage, mut oom_killed) = (Usage::default(), false);
        if let Some(group) = &group {
            // Without a pid namespace of their own the others live on, and hold the pipes open.
            if group.pids().is_ok_and(|pids| !pids.is_empty()) {
                let _ = group.thaw();
                let _ = group.kill();
            }
            usage = group
                .stats()
                .map(|stats| Usage::from_stats(&stats))
                .unwrap_or_default();
            oom_killed = group.oom_kills().is_ok_and(|kills| kills > 0);
        }
        for i in 0..self.sessions.len() {
            self.drain(i);
        }
        let exited = Exited {
            code,
            signal,
            oom_killed,
            at: finished_at,
        };
        self.tell(exited, |role| {
            matches!(
                role,
                Role::Stream {
                    session: MAIN,
                    end_at_once: true,
                    ..
                }
            )
        });
        let record = ExitRecord {
            version: EXIT_VERSION,
            instance: self.identity.instance.clone(),
            generation: self.identity.generation,
            code,
            signal,
            oom_killed,
            started_at: self.started_at,
            finished_at,
            usage,
        };
        let now = Instant::now();
        self.unsaved = Some((record, now, now));
    }

    /// Writes the record if there is one to write and its time has come; on success, ends all.
    pub(super) fn save_exit(&mut self) {
        let now = Instant::now();
        let Some((record, since, again)) = self.unsaved.take() else {
            return;
        };
        if now < again {
            self.unsaved = Some((record, since, again));
            return;
        }
        let Err(error) = record.save(&self.identity.exit_record) else {
            return self.tell_exit(&record);
        };
        self.complain(&chain(&error));
        let fallback = record.save(&self.identity.dir.join(FALLBACK_EXIT_FILE));
        if fallback.is_ok() && now.duration_since(since) > GIVE_UP {
            return self.tell_exit(&record);
        }
        self.unsaved = Some((record, since, now + RETRY));
    }

    /// The record is durable: removes the container and tells everybody.
    fn tell_exit(&mut self, record: &ExitRecord) {
        if let Some(container) = self.container.take() {
            match container.delete(Delete::Force) {
                Ok(warnings) => warnings.iter().for_each(|warning| self.complain(warning)),
                // The daemon's cleanup() tries again.
                Err(error) => self.complain(&chain(&error)),
            }
        }
        // Whoever comes from here on finds the record, and may launch another shim here.
        let _ = std::fs::remove_file(self.identity.dir.join(SOCKET_FILE));
        self.lock = None;
        let exited = record.exited();
        self.exited = Some(exited);
        self.tell(exited, |role| {
            matches!(role, Role::Stream { session: MAIN, .. } | Role::Waiting)
        });
        self.told = Some(Instant::now());
    }

    /// Tells clients of these roles how the container ended, once each.
    fn tell(&mut self, exited: Exited, whom: impl Fn(Role) -> bool) {
        for connection in self.connections.iter_mut().flatten() {
            if whom(connection.role) && !connection.closing {
                connection.say(&Reply::Exited(exited));
                connection.closing = true;
            }
        }
    }

    /// Leaves a line in `shim.err`.
    fn complain(&self, text: &str) {
        use std::io::Write;
        let _ = writeln!(std::io::stderr().lock(), "{} {text}", Timestamp::now());
    }
}
