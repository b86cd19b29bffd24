//! Freezes, wakes and kills processes of the runs, one at a time, and sees which of them stand still.
//!
//! Every run has a process group of its own, and a process is signalled only after it was seen, by a handle on itself, to be in one of those.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::fixtures::Seeded;

/// A run that is not stopped, computes nothing and ends neither, has this long: longer than any lock is waited for.
pub const STANDSTILL: Duration = Duration::from_secs(5);

/// The runs that are going on, by process group.
#[derive(Default)]
pub struct Groups {
    groups: Mutex<BTreeMap<i32, Group>>,
}

/// One run.
#[derive(Clone)]
pub struct Group {
    /// The command line.
    pub what: String,
    /// Whether one of its processes was killed.
    pub is_hit: bool,
    /// When it was last seen to do something, and the processor time it had used by then.
    seen: (Instant, u64),
}

/// A process as `/proc` shows it.
#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    group: i32,
    state: char,
    /// Processor time in ticks.
    ticks: u64,
}

impl Groups {
    /// Notes a run.
    pub fn enter(&self, group: u32, what: String) {
        let entry = Group { what, is_hit: false, seen: (Instant::now(), 0) };
        self.lock().insert(group as i32, entry);
    }

    /// Returns what was done to a run, which stays noted as long as it has processes.
    pub fn look(&self, group: u32) -> Group {
        self.lock()[&(group as i32)].clone()
    }

    /// Forgets the runs of which no process is left, and returns the others.
    pub fn remaining(&self) -> Vec<Group> {
        let processes = self.processes();
        self.lock().retain(|group, _| processes.iter().any(|process| process.group == *group));
        self.lock().values().cloned().collect()
    }

    /// Returns the runs that have stood still for too long, and kills them.
    pub fn standing(&self) -> Vec<String> {
        let processes = self.processes();
        let mut standing = Vec::new();
        for (group, entry) in self.lock().iter_mut() {
            let members = || processes.iter().filter(|process| process.group == *group);
            let ticks = members().map(|process| process.ticks).sum();
            // Whoever waits for a disk or is stopped does not wait for one of us.
            let is_excused =
                members().next().is_none() || members().any(|process| matches!(process.state, 'R' | 'D' | 'T' | 't'));
            if is_excused || ticks != entry.seen.1 {
                entry.seen = (Instant::now(), ticks);
            } else if entry.seen.0.elapsed() > STANDSTILL {
                standing.push(entry.what.clone());
                members().for_each(|process| signal(process, Signal::KILL));
                entry.seen.0 = Instant::now();
            }
        }
        standing
    }

    /// Stops, or lets go on, all processes of a run.
    pub fn signal_all(&self, group: u32, what: Signal) {
        for process in self.processes().iter().filter(|process| process.group == group as i32) {
            signal(process, what);
        }
    }

    /// Says whether all processes of a run are stopped.
    #[cfg(test)]
    fn is_stopped(&self, group: u32) -> bool {
        let processes = self.processes();
        let mut members = processes.iter().filter(|process| process.group == group as i32).peekable();
        members.peek().is_some() && members.all(|process| process.state == 'T')
    }

    /// Returns the living processes of all runs.
    fn processes(&self) -> Vec<Process> {
        let groups = self.lock();
        let Ok(listed) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(look_at).filter(|process| groups.contains_key(&process.group)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Group>> {
        self.groups.lock().expect("BUG: a thread panicked while it held the runs")
    }
}

/// Reads what `/proc` tells of a process; `None` if it is gone or only waits to be forgotten.
fn look_at(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // As in '42 (git) S 1 40 ...': the name may have anything in it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let state = fields.first()?.chars().next()?;
    let process = Process { pid, group: number(2)? as i32, state, ticks: number(11)? + number(12)? };
    (!matches!(state, 'Z' | 'X')).then_some(process)
}

fn signal(process: &Process, what: Signal) {
    if let Some(handle) = handle_on(process) {
        let _ = pidfd_send_signal(handle, what); // it may just have ended
    }
}

/// Returns a handle on the process, unless its number belongs to another one by now.
fn handle_on(process: &Process) -> Option<OwnedFd> {
    let handle = pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::empty()).ok()?;
    (look_at(process.pid)?.group == process.group).then_some(handle)
}

/// Disturbs the runs, until it is dropped: then all go on.
pub struct Nemesis<'g> {
    groups: &'g Groups,
    dice: Seeded,
    frozen: Vec<(Instant, OwnedFd)>,
    /// What it did: stops, kills.
    pub n_done: (u64, u64),
}

impl<'g> Nemesis<'g> {
    /// Begins, with what it does following from `seed`.
    pub fn new(groups: &'g Groups, seed: u64) -> Nemesis<'g> {
        Nemesis { groups, dice: Seeded::new(seed), frozen: Vec::new(), n_done: (0, 0) }
    }

    /// Does something or nothing to one process, wakes those whose time it is, and returns how long to wait.
    pub fn act(&mut self) -> Duration {
        let now = Instant::now();
        self.frozen.retain(|(until, handle)| {
            let is_over = *until <= now;
            if is_over {
                let _ = pidfd_send_signal(handle, Signal::CONT); // it may be dead
            }
            !is_over
        });
        let processes = self.groups.processes();
        let (choice, which, long) = (self.dice.next() % 100, self.dice.next(), self.dice.next());
        if let Some(process) = processes.get((which % processes.len().max(1) as u64) as usize) {
            match choice {
                0..45 => self.freeze(process, long),
                45..52 => self.kill(process),
                _ => (),
            }
        }
        Duration::from_millis(1 + self.dice.next() % 25)
    }

    fn freeze(&mut self, process: &Process, long: u64) {
        let Some(handle) = handle_on(process) else { return };
        // Mostly moments; now and then longer than any lock is waited for.
        let millis = if long.is_multiple_of(25) { 3000 } else { 1 + long % 150 };
        if pidfd_send_signal(&handle, Signal::STOP).is_ok() {
            self.frozen.push((Instant::now() + Duration::from_millis(millis), handle));
            self.n_done.0 += 1;
        }
    }

    fn kill(&mut self, process: &Process) {
        if let Some(group) = self.groups.lock().get_mut(&process.group) {
            group.is_hit = true;
        }
        signal(process, Signal::KILL);
        self.n_done.1 += 1;
    }
}

impl Drop for Nemesis<'_> {
    fn drop(&mut self) {
        for (_, handle) in &self.frozen {
            let _ = pidfd_send_signal(handle, Signal::CONT); // it may be dead
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn a_run_is_frozen_woken_and_only_then_expected_to_move() {
        let groups = Groups::default();
        let mut child = Command::new("sleep").arg("100").process_group(0).spawn().unwrap();
        groups.enter(child.id(), "sleep".into());
        groups.signal_all(child.id(), Signal::STOP);
        while !groups.is_stopped(child.id()) {
            std::thread::yield_now();
        }
        assert_eq!(groups.standing(), [""; 0]);
        groups.signal_all(child.id(), Signal::CONT);
        while groups.is_stopped(child.id()) {
            std::thread::yield_now();
        }
        groups.lock().get_mut(&(child.id() as i32)).unwrap().seen.0 -= STANDSTILL * 2;
        assert_eq!(groups.standing(), ["sleep"], "it sleeps, and nobody stopped it");
        child.wait().unwrap();
        assert_eq!(groups.remaining().len(), 0);
    }
}
