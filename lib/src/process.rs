//! Other processes of this machine: which they are, when they were started, whether they still run. Nothing here starts any.

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

    /// Returns the processes that live of all that it began: itself, which is the first, and those of its group and session.
    pub fn living(self) -> Result<Vec<u32>> {
        let leader = look(self.id);
        // The number of a group or session is given to nobody else while somebody is in it.
        if leader.as_ref().is_some_and(|leader| leader.started != self.started) {
            return Ok(Vec::new());
        }
        let is_one =
            |id: &u32| look(*id).is_some_and(|found| found.is_alive && (found.groups.contains(&self.id) || *id == self.id));
        let mut living: Vec<u32> = all()?.into_iter().filter(is_one).collect();
        // Numbers begin anew some time: one of its children may have a lower one.
        living.sort_by_key(|id| *id != self.id);
        Ok(living)
    }
}

/// Returns the numbers of all processes, sorted.
pub(crate) fn all() -> Result<Vec<u32>> {
    let listed = durable::list(Path::new("/proc")).context(|| "cannot list '/proc'")?;
    let id_of = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut all: Vec<u32> = listed.iter().filter_map(|listed| id_of(&listed.path)).collect();
    all.sort_unstable();
    Ok(all)
}

/// What the kernel says of a process.
pub(crate) struct Found {
    /// The name of its program, or the beginning of it.
    pub(crate) name: String,
    pub(crate) is_alive: bool,
    /// Its process group, and its session.
    groups: [u32; 2],
    /// In clock ticks since the boot.
    started: u64,
}

impl Found {
    /// Returns when it was started, in seconds since 1970, rounded down, if the machine was started at `boot`.
    pub(crate) fn started_at(&self, boot: i64) -> i64 {
        boot.saturating_add_unsigned(self.started / rustix::param::clock_ticks_per_second())
    }
}

/// Returns when the machine was started, in seconds since 1970, by what its clock says now; `None` if the kernel does not tell.
pub(crate) fn boot_time() -> Option<i64> {
    let text = durable::read(Path::new("/proc/stat")).ok()?;
    String::from_utf8_lossy(&text).lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Returns the user as whom a process acts; `None` if there is none by now.
pub(crate) fn user(id: u32) -> Option<u32> {
    let text = durable::read(&Path::new("/proc").join(id.to_string()).join("status")).ok()?;
    // Real, effective, saved, and that of files.
    String::from_utf8_lossy(&text)
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Looks at the process with this number; `None` if there is none by now.
pub(crate) fn look(id: u32) -> Option<Found> {
    let text = durable::read(&Path::new("/proc").join(id.to_string()).join("stat")).ok()?;
    parse(&String::from_utf8_lossy(&text))
}

/// Takes a line as proc_pid_stat(5) describes it; the name of the program may have spaces and parentheses.
pub(crate) fn parse(text: &str) -> Option<Found> {
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut words = after.split_ascii_whitespace();
    let state = words.next()?;
    let groups = [words.nth(1)?.parse().ok()?, words.next()?.parse().ok()?];
    let started = words.nth(15)?.parse().ok()?;
    Some(Found { name, is_alive: !matches!(state, "Z" | "X" | "x"), groups, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_whatever_the_program_is_called() {
        let line = "42 (a) S 1 (b) R 1 7 9 0 -1 4194304 88 0 0 0 0 0 0 0 20 0 1 0 56789 2654208 0 18446744073709551615";
        let found = parse(line).unwrap();
        assert_eq!((found.name.as_str(), found.groups, found.started, found.is_alive), ("a) S 1 (b", [7, 9], 56789, true));
        assert!(!parse(&line.replace(" R ", " Z ")).unwrap().is_alive);
        for hostile in ["", "42", "42 (a)", "42 (a) R", "42 (a) R 1 2 x"] {
            assert!(parse(hostile).is_none(), "{hostile}");
        }
    }

    #[test]
    fn the_start_of_a_process_is_told_as_by_the_clock_and_its_user() {
        let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let (started, user) = (look(child.id()).unwrap().started_at(boot_time().unwrap()), user(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!((before - 1..=before + 2).contains(&started), "{started}, and the clock said {before}");
        assert_eq!(user, Some(rustix::process::geteuid().as_raw()));
    }

    #[test]
    fn who_began_it_is_the_first_of_those_that_live() {
        use std::io::{BufRead as _, BufReader};
        // The child leads the group, and its parent, whose number is lower, is in it.
        let script = "import os, time\nchild = os.fork()\nos.setpgid(child, child)\nif child:\n    os.setpgid(0, child)\n    print(child, flush=True)\ntime.sleep(100)";
        let mut parent =
            std::process::Command::new("python3").args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let leader = Process::of(line.trim().parse().unwrap()).unwrap();
        let living = leader.living();
        std::process::Command::new("kill").args(["-KILL", "--", &format!("-{}", leader.id)]).status().unwrap();
        parent.wait().unwrap();
        assert_eq!(living.unwrap(), [leader.id, parent.id()]);
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
