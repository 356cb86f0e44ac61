//! Applying [`Rules`] to the kernel, at the least cost.
//!
//! Called by the node's reconcile loop and by the start and stop paths of instances. If only
//! published ports or instances' ports changed since the last time, the difference goes to the
//! kernel as one atomic nfnetlink batch (tens of microseconds); otherwise both tables are replaced
//! by one `nft -f -`. If somebody else's `nft flush ruleset` took the tables away, the next call
//! notices and puts them back. It touches no table but its own two.

mod conntrack;
mod elements;

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::io::Errno;

use crate::netlink::{NetlinkError, Socket};
use crate::ruleset::{self, Program, Rules, RulesError};
use crate::{Prefix, netns};

/// More changed elements than this, and replacing everything is cheaper.
const DELTA_MAX: usize = 2_000;

/// Longest part of nft's complaint that is kept.
const COMPLAINT_MAX: usize = 2_000;

/// The daemon's tables in the network namespace it was opened in.
#[derive(Debug)]
pub struct Firewall {
    prefix: Prefix,
    netns: OwnedFd,
    socket: Socket,
    applied: Option<Program>,
}

/// What [`Firewall::apply`] had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Nothing had changed.
    Unchanged,
    /// So many set elements were added or deleted.
    Elements(usize),
    /// Both tables were replaced.
    Replaced,
}

/// Why the rules could not be applied. The former rules are still in force.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The wanted rules contradict each other.
    #[error("the packet rules cannot be applied")]
    Rules(#[from] RulesError),
    /// `nft` could not be run.
    #[error("packet rules need the program nft; install the package nftables")]
    Spawn(#[source] std::io::Error),
    /// `nft` refused the rules.
    #[error("nft refused the packet rules: {complaint}")]
    Refused {
        /// What it said.
        complaint: String,
    },
    /// The kernel refused.
    #[error("the packet rules could not be applied")]
    Netlink(#[from] NetlinkError),
}

impl Firewall {
    /// A firewall for the calling thread's network namespace. Changes nothing yet.
    ///
    /// # Errors
    /// The namespace or a netlink socket could not be opened.
    pub fn open(prefix: Prefix) -> Result<Self, FirewallError> {
        let netns = netns::current()
            .map_err(|errno| NetlinkError::new("open the current network namespace", errno))?;
        Ok(Self {
            prefix,
            netns,
            socket: Socket::netfilter()?,
            applied: None,
        })
    }

    /// Makes `rules` the rules in force, atomically: no packet meets a half of them. Blocks while
    /// the kernel (or `nft`) works; call it off the async threads.
    ///
    /// # Errors
    /// See [`FirewallError`].
    pub fn apply(&mut self, rules: &Rules) -> Result<Applied, FirewallError> {
        let program = ruleset::compile(&self.prefix, rules)?;
        let done = match self.update(&program)? {
            Some(done) => done,
            None => {
                self.nft(&program.text())?;
                Applied::Replaced
            }
        };
        self.applied = Some(program);
        Ok(done)
    }

    /// Removes both tables. Doing so twice is no error.
    ///
    /// # Errors
    /// See [`FirewallError`].
    pub fn remove(&mut self) -> Result<(), FirewallError> {
        self.applied = None;
        let table = ruleset::table(&self.prefix);
        let text: String = ["inet", "bridge"]
            .map(|family| format!("table {family} {table} {{ }}\ndelete table {family} {table}\n"))
            .concat();
        self.nft(&text)
    }

    /// Tries to get by with a change of elements; `None` if everything must be replaced.
    fn update(&mut self, program: &Program) -> Result<Option<Applied>, FirewallError> {
        let Some(applied) = &self.applied else {
            return Ok(None);
        };
        if applied.skeleton != program.skeleton {
            return Ok(None);
        }
        let table = ruleset::table(&self.prefix);
        let gone: Vec<_> = applied.elements.difference(&program.elements).collect();
        let new: Vec<_> = program.elements.difference(&applied.elements).collect();
        let count = gone.len() + new.len();
        if count == 0 {
            let intact = elements::tables_exist(&mut self.socket, &table)?;
            return Ok(intact.then_some(Applied::Unchanged));
        }
        if count > DELTA_MAX {
            return Ok(None);
        }
        match elements::change(&mut self.socket, &table, &gone, &new) {
            Ok(()) => {
                if let Err(error) = conntrack::forget(&mut self.socket, gone.into_iter().chain(new))
                {
                    tracing::warn!(%error, errno = %error.errno, "old UDP flows live on");
                }
                Ok(Some(Applied::Elements(count)))
            }
            Err(error) => {
                // Somebody changed the tables under us: replacing them is the cure.
                if error.errno != Errno::NOENT {
                    tracing::warn!(%error, errno = %error.errno, "replacing all packet rules");
                }
                Ok(None)
            }
        }
    }

    fn nft(&self, text: &str) -> Result<(), FirewallError> {
        let run = || {
            let mut child = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut written = Ok(());
            if let Some(mut stdin) = child.stdin.take() {
                written = stdin.write_all(text.as_bytes());
            }
            // If nft stopped reading, its complaint says more than the broken pipe.
            let output = child.wait_with_output()?;
            if output.status.success() {
                written.map(|()| output)
            } else {
                Ok(output)
            }
        };
        let output = netns::within(self.netns.as_fd(), run)
            .map_err(|errno| NetlinkError::new("enter the daemon's network namespace", errno))?
            .map_err(FirewallError::Spawn)?;
        if output.status.success() {
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint = complaint.trim().chars().take(COMPLAINT_MAX).collect();
        Err(FirewallError::Refused { complaint })
    }
}
