//! Whether a file was looked at so shortly after its last change that another one would leave no trace in its times.

use crate::safepath::{Stat, Time};

/// A file younger than this when it was looked at may change again without a trace in its times: it is looked at again next time.
pub(super) const CLOCK_TICK_NANOS: i128 = 20_000_000;

/// The same where times have no fractions of a second.
const COARSE_TICK_NANOS: i128 = 2_000_000_000;

/// Returns the time, in nanoseconds since the epoch.
pub(super) fn clock() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    nanos(Time { secs: now.tv_sec, nanos: now.tv_nsec as u32 })
}

pub(super) fn nanos(time: Time) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}

/// Says whether the file was so young at `began`, before it was looked at, that a later change could leave the same times behind.
///
/// Every change sets `ctime`, also one that sets `mtime` back or ahead.
pub(super) fn is_racy(stat: &Stat, began: i128) -> bool {
    // Some filesystems keep whole seconds, or two of them; elsewhere hardly any file has exactly that.
    let tick = if stat.ctime.nanos == 0 { COARSE_TICK_NANOS } else { CLOCK_TICK_NANOS };
    let age = began - nanos(stat.ctime);
    // A time far ahead is that of another clock: the next change has a time of this one.
    (-tick..tick).contains(&age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safepath::Dir;

    #[test]
    fn a_file_is_believed_once_a_change_would_show() {
        const MS: i128 = 1_000_000;
        // The clock when the file was about to be looked at, against its change time.
        for (nanos_of_ctime, age, want) in [
            (5, 0, true),
            (5, 19 * MS, true),
            (5, 21 * MS, false),
            (5, -MS, true),
            (5, -3_600_000 * MS, false),
            (0, 21 * MS, true),
            (0, 1999 * MS, true),
            (0, 2001 * MS, false),
        ] {
            let ctime = Time { secs: 1_000_000, nanos: nanos_of_ctime };
            let dir = Dir::open(std::path::Path::new("/")).unwrap();
            let stat = Stat { ctime, mtime: Time { secs: i64::MAX, nanos: 0 }, ..dir.stat_self().unwrap() };
            assert_eq!(is_racy(&stat, nanos(ctime) + age), want, "{nanos_of_ctime} {age}");
        }
    }
}
