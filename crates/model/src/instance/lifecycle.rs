//! The life of an instance as a pure function.
//!
//! ```text
//!             Created          Prepared          Started
//!  Creating ──────────▶ Stopped ──────▶ Prepared ──────▶ Running ◀──Resumed── Paused
//!     │                  ▲ ▲  │             │             │ │ └────Paused─────▶ │
//!     │ Failed           │ │  └─StartFailed─┤     Stopping│ │ Exited            │ Exited
//!     ▼                  │ └────── Exited ──┘             ▼ ▼                   ▼
//!   Failed ──────────────┘◀────────────────────────── Stopping ──Exited──▶ Stopped
//!
//!  any ──Deleting──▶ Deleting ──Deleted──▶ (gone)
//! ```
//!
//! What the node sees becomes an [`Event`]; an event that cannot happen in a phase is refused, so
//! a bug in a driver shows as an error and not as a wrong status.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its parts are being acquired.
    Creating,
    /// It could not be created; only deleting helps.
    Failed,
    /// All it needs is there; nothing runs.
    Stopped,
    /// Set up, the program waits to be started.
    Prepared,
    /// The program runs.
    Running,
    /// The program is frozen.
    Paused,
    /// The program was asked to end.
    Stopping,
    /// Its parts are being given back.
    Deleting,
}

/// Something that happened to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// All parts are there.
    Created,
    /// A part could not be acquired.
    CreateFailed,
    /// The program is set up.
    Prepared,
    /// The program could not be set up or started.
    StartFailed,
    /// The program was started.
    Started,
    /// The program was frozen.
    Paused,
    /// The program was thawed.
    Resumed,
    /// The program was asked to end.
    Stopping,
    /// The program ended, or was found gone.
    Exited,
    /// Its parts are being given back.
    Deleting,
}

/// An event that cannot happen in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to an instance that is {phase}")]
pub struct Impossible {
    /// The phase.
    pub phase: Phase,
    /// The event.
    pub event: Event,
}

/// The phase after `event`.
///
/// # Errors
/// When the event cannot happen in `phase`.
pub const fn next(phase: Phase, event: Event) -> Result<Phase, Impossible> {
    use Phase::{Creating, Deleting, Failed, Paused, Prepared, Running, Stopped, Stopping};
    Ok(match (phase, event) {
        (_, Event::Deleting) => Deleting,
        (Creating, Event::Created) => Stopped,
        (Creating, Event::CreateFailed) => Failed,
        (Stopped, Event::Prepared) => Prepared,
        (Stopped | Prepared, Event::StartFailed) => Stopped,
        (Prepared, Event::Started) | (Paused, Event::Resumed) => Running,
        (Running, Event::Paused) => Paused,
        (Prepared | Running | Paused | Stopping, Event::Stopping) => Stopping,
        (Stopped | Prepared | Running | Paused | Stopping, Event::Exited) => Stopped,
        _ => return Err(Impossible { phase, event }),
    })
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 8] = [
        Self::Creating,
        Self::Failed,
        Self::Stopped,
        Self::Prepared,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Deleting,
    ];

    /// The word shown to people and written on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Prepared => "prepared",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Deleting => "deleting",
        }
    }

    /// Whether processes of the instance exist.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(
            self,
            Self::Prepared | Self::Running | Self::Paused | Self::Stopping
        )
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 10] = [
        Event::Created,
        Event::CreateFailed,
        Event::Prepared,
        Event::StartFailed,
        Event::Started,
        Event::Paused,
        Event::Resumed,
        Event::Stopping,
        Event::Exited,
        Event::Deleting,
    ];

    #[test]
    fn a_usual_life() {
        let mut phase = Phase::Creating;
        for event in [
            Event::Created,
            Event::Prepared,
            Event::Started,
            Event::Paused,
            Event::Resumed,
            Event::Stopping,
            Event::Exited,
            Event::Deleting,
        ] {
            phase = next(phase, event).unwrap();
        }
        assert_eq!(phase, Phase::Deleting);
    }

    #[test]
    fn whatever_lives_can_end_and_whatever_is_can_be_deleted() {
        for phase in Phase::ALL {
            if phase.is_live() {
                assert_eq!(next(phase, Event::Exited), Ok(Phase::Stopped));
            }
            assert_eq!(next(phase, Event::Deleting), Ok(Phase::Deleting));
        }
    }

    #[test]
    fn nothing_leaves_deleting_and_nothing_failed_starts() {
        for event in EVENTS {
            let stays = next(Phase::Deleting, event).is_ok_and(|phase| phase == Phase::Deleting);
            assert_eq!(stays, event == Event::Deleting);
            assert!(!next(Phase::Failed, event).is_ok_and(Phase::is_live));
        }
    }
}
