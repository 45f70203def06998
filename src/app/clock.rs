//! Whether the clock was set.
//!
//! The kernel was told of an entry that ends how long it lasts, and counts that by a clock of its own: one that nobody sets,
//! and that stands still while the host is suspended.

use std::time::{Duration, Instant, SystemTime};

/// Both clocks at one time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    wall: SystemTime,
    steady: Instant,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// Whether time went otherwise by the two since `before`. A clock that is adjusted little by little comes to that too.
    pub(super) fn was_set_since(self, before: Self) -> bool {
        let elapsed = self.steady.saturating_duration_since(before.steady);
        let Some(expected) = before.wall.checked_add(elapsed) else { return true };
        let off = self.wall.duration_since(expected).unwrap_or_else(|error| error.duration());
        off > TOLERANCE
    }

    /// By which entries end.
    pub(super) fn wall(self) -> SystemTime {
        self.wall
    }
}

/// Far more than passes between looking at the one and at the other.
const TOLERANCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_a_suspended_host_and_a_drift_are_told_from_time_that_passes() {
        let (wall, steady) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
        let before = Clock { wall, steady };
        let second = Duration::from_secs(1);
        for (by_wall, by_steady, was_set) in [
            (wall, steady, false),
            (wall + 3600 * second, steady + 3600 * second, false),
            (wall + 3602 * second, steady + 3600 * second, false),
            (wall + 3603 * second, steady + 3600 * second, true),
            (wall + 3597 * second, steady + 3600 * second, true),
            (wall + 86_400 * second, steady + second, true),
            (wall - 900_000 * second, steady + second, true),
        ] {
            let now = Clock { wall: by_wall, steady: by_steady };
            assert_eq!(now.was_set_since(before), was_set, "{now:?}");
        }
    }
}
