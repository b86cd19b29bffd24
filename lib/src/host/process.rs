//! Processes that outlive whoever started them: which they are, and whether they still run.

use std::path::Path;

use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// A process of this boot, told from every other that gets its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number, which is that of its process group too, and of its session.
    pub id: u32,
    /// When it was started, in clock ticks since the boot.
    pub started: u64,
}

impl Process {
    /// Looks at the process with this number, which runs, or has ended and was not waited for.
    pub fn of(id: u32) -> Result<Self> {
        let what = || format!("cannot tell when process {id} was started");
        let found = look(id).ok_or_else(|| Error::new(Kind::NotFound, "there is no such process in '/proc'")).context(what)?;
        Ok(Self { id, started: found.started })
    }

    /// Returns the processes that live of all that it began: itself, and those of its group and session.
    pub fn living(self) -> Result<Vec<u32>> {
        let leader = look(self.id);
        // The number of a group or session is given to nobody else while somebody is in it.
        if leader.as_ref().is_some_and(|leader| leader.started != self.started) {
            return Ok(Vec::new());
        }
        let all = durable::list(Path::new("/proc")).context(|| "cannot list '/proc'")?;
        let id_of = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
        let is_one =
            |id: &u32| look(*id).is_some_and(|found| found.is_alive && (found.groups.contains(&self.id) || *id == self.id));
        let mut living: Vec<u32> = all.iter().filter_map(|listed| id_of(&listed.path)).filter(is_one).collect();
        living.sort_unstable();
        Ok(living)
    }
}

pub(super) struct Found {
    is_alive: bool,
    /// Its process group, and its session.
    groups: [u32; 2],
    started: u64,
}

fn look(id: u32) -> Option<Found> {
    // Whoever ends meanwhile is not there.
    let text = durable::read(&Path::new("/proc").join(id.to_string()).join("stat")).ok()?;
    parse(&String::from_utf8_lossy(&text))
}

/// Takes a line as proc_pid_stat(5) describes it; the name of the program may have spaces and parentheses.
pub(super) fn parse(text: &str) -> Option<Found> {
    let mut words = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = words.next()?;
    let groups = [words.nth(1)?.parse().ok()?, words.next()?.parse().ok()?];
    let started = words.nth(15)?.parse().ok()?;
    Some(Found { is_alive: !matches!(state, "Z" | "X" | "x"), groups, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_whatever_the_program_is_called() {
        let line = "42 (a) S 1 (b) R 1 7 9 0 -1 4194304 88 0 0 0 0 0 0 0 20 0 1 0 56789 2654208 0 18446744073709551615";
        let found = parse(line).unwrap();
        assert_eq!((found.groups, found.started, found.is_alive), ([7, 9], 56789, true));
        assert!(!parse(&line.replace(" R ", " Z ")).unwrap().is_alive);
        for hostile in ["", "42", "42 (a)", "42 (a) R", "42 (a) R 1 2 x"] {
            assert!(parse(hostile).is_none(), "{hostile}");
        }
    }

    #[test]
    fn one_with_another_start_is_another() {
        let ours = Process::of(std::process::id()).unwrap();
        assert!(ours.living().unwrap().contains(&ours.id));
        assert!(Process { started: ours.started + 1, ..ours }.living().unwrap().is_empty());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let zombie = Process::of(child.id()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(zombie.living().unwrap().is_empty(), "it has ended, though nobody waited for it");
        child.wait().unwrap();
        assert!(zombie.living().unwrap().is_empty());
    }
}
