//! The crash sweeps: a verb is stopped at its Nth mutating system call, for every N, and what is left is judged.
//!
//! Ways to stop it: `kill` (SIGKILL for all its processes), `cut` (the power of the filesystem, and nothing that was not on the disk gets there),
//! `cut-journal` (the same just after the filesystem committed its journal for somebody else), and error numbers, for one call (`ENOSPC`) or from
//! there on (`ENOSPC-on`). And a way that does not stop it: `gc-meanwhile` freezes it there and lets both git and a run of ours collect garbage.
//! After each, [`judge`] must find nothing.

pub mod verbs;

mod disk;
mod elsewhere;
mod host;
mod judge;
mod replays;
mod table;
mod trace;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use crate::acceptance::program;
use crate::command::{Context, Failure, Result, target_dir};
use crate::{ensure, packages};

use disk::{Disk, Kind, State};
use host::Sockets;
use judge::Reference;
use table::{Bad, Row};
use trace::{Plan, Strike, Traced};
use verbs::{Brings, Place, VERBS, Verb};

/// What happens at the Nth call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// SIGKILL.
    Kill,
    /// Power cut.
    Cut {
        /// Just after a journal commit.
        is_journal_committed: bool,
    },
    /// All garbage is collected before the call is made.
    GcMeanwhile,
    /// The call fails.
    Fail {
        /// The error's name.
        name: &'static str,
        /// The error's number.
        errno: i32,
        /// So do all later ones.
        for_good: bool,
    },
}

/// EINTR for good is left out: no call that is repeated could ever end.
const ERRORS: &[(&str, i32)] = &[
    ("ENOSPC", libc::ENOSPC),
    ("EIO", libc::EIO),
    ("EDQUOT", libc::EDQUOT),
    ("EMFILE", libc::EMFILE),
    ("ENOMEM", libc::ENOMEM),
    ("EROFS", libc::EROFS),
    ("EINTR", libc::EINTR),
];

impl Mode {
    fn all() -> Vec<Mode> {
        let cuts = [false, true].map(|is_journal_committed| Mode::Cut { is_journal_committed });
        let fail = |for_good| ERRORS.iter().map(move |&(name, errno)| Mode::Fail { name, errno, for_good });
        let fails = fail(false)
            .chain(fail(true).filter(|mode| *mode != Mode::Fail { name: "EINTR", errno: libc::EINTR, for_good: true }));
        [Mode::Kill].into_iter().chain(cuts).chain([Mode::GcMeanwhile]).chain(fails).collect()
    }

    fn name(self) -> String {
        match self {
            Mode::Kill => "kill".into(),
            Mode::Cut { is_journal_committed: false } => "cut".into(),
            Mode::Cut { is_journal_committed: true } => "cut-journal".into(),
            Mode::GcMeanwhile => "gc-meanwhile".into(),
            Mode::Fail { name, for_good: false, .. } => name.into(),
            Mode::Fail { name, for_good: true, .. } => format!("{name}-on"),
        }
    }

    fn is_error(self) -> bool {
        matches!(self, Mode::Fail { .. })
    }

    /// Says whether it comes from somewhere else than the filesystem, so that one of them is enough.
    fn is_alike_everywhere(self) -> bool {
        self.is_error() || self == Mode::GcMeanwhile
    }

    /// Says whether a filesystem of this kind can be brought into such a state.
    fn is_possible(self, kind: Kind) -> bool {
        kind.can_be_cut() || !matches!(self, Mode::Cut { .. })
    }
}

struct Request {
    verbs: Vec<&'static Verb>,
    modes: Vec<Mode>,
    kinds: Vec<Kind>,
    /// Only these calls.
    at: Option<(u64, u64)>,
    /// At most so many calls per sweep.
    n_samples: Option<u64>,
    /// The same for errors, of which there are many.
    n_error_samples: Option<u64>,
    /// Fewer where others are alike.
    is_short: bool,
    without_sync: bool,
    n_threads: usize,
    n_jobs: usize,
    json: bool,
    gdo: PathBuf,
    scratch: PathBuf,
}

/// Runs `cargo xtask crash`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let request = Request::parse(args)?;
    ensure!(packages::is_root(), "the crash sweeps need root: they mount filesystems and cut their power");
    let started = Instant::now();
    request.must_see_what_is_broken()?;
    let rows = request.sweep()?;
    let n_bad: usize = rows.iter().map(|row| row.bad.len()).sum();
    match request.json {
        true => println!("{}", table::json(&rows)),
        false => print!("{}", table::markdown(&rows, started.elapsed())),
    }
    Ok(ExitCode::from(u8::from(n_bad > 0)))
}

impl Request {
    fn parse(args: Vec<OsString>) -> Result<Request> {
        let mut request = Request {
            verbs: Vec::new(),
            modes: Vec::new(),
            kinds: Vec::new(),
            at: None,
            n_samples: Some(3),
            n_error_samples: Some(1),
            is_short: true,
            without_sync: false,
            n_threads: 1,
            n_jobs: std::thread::available_parallelism().map_or(1, usize::from),
            json: false,
            gdo: PathBuf::new(),
            scratch: target_dir().join("crash"),
        };
        let mut args = args.into_iter();
        let mut gdo = None;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| Failure(format!("{} needs a value", arg.display())));
            let number = |value: OsString| value.to_str().and_then(|value| value.parse().ok()).ok_or("not a number");
            match arg.to_str().unwrap_or_default() {
                "--short" => {}
                "--full" => (request.n_samples, request.n_error_samples, request.is_short) = (None, None, false),
                "--sample" => {
                    let n_samples = Some(number(value()?)?);
                    (request.n_samples, request.n_error_samples, request.is_short) = (n_samples, n_samples, false);
                }
                "--verb" => request.verbs.push(named(value()?, VERBS.iter().map(|verb| (verb.name.to_owned(), verb)))?),
                "--mode" => request.modes.push(named(value()?, Mode::all().into_iter().map(|mode| (mode.name(), mode)))?),
                "--fs" => request.kinds.push(named(value()?, Kind::ALL.iter().map(|(name, kind)| ((*name).to_owned(), *kind)))?),
                "--at" => request.at = Some(range(&value()?)?),
                "--threads" => request.n_threads = number(value()?)? as usize,
                "--jobs" => request.n_jobs = number(value()?)? as usize,
                "--without-sync" => request.without_sync = true,
                "--json" => request.json = true,
                "--gdo" => gdo = Some(PathBuf::from(value()?)),
                "--scratch" => request.scratch = std::path::absolute(value()?)?,
                _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
            }
        }
        if request.verbs.is_empty() {
            request.verbs = VERBS.iter().collect();
        }
        if request.modes.is_empty() {
            request.modes = Mode::all();
        }
        if request.kinds.is_empty() {
            request.kinds = Kind::ALL.iter().map(|(_, kind)| *kind).filter(|kind| kind.can_be_cut()).collect();
        }
        request.gdo = program(gdo)?;
        Ok(request)
    }

    /// Does all sweeps, several at a time, and returns what they found in the order of the request.
    fn sweep(&self) -> Result<Vec<Row>> {
        let pairs = self.kinds.iter().flat_map(|kind| self.verbs.iter().map(move |verb| (*kind, *verb)));
        let todo = Mutex::new(pairs.enumerate().collect::<Vec<_>>().into_iter());
        let rows = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.n_jobs.max(1))
                .map(|worker| {
                    let (todo, rows) = (&todo, &rows);
                    scope.spawn(move || -> Result {
                        let next = || todo.lock().expect(POISONED).next();
                        while let Some((position, (kind, verb))) = next() {
                            let what = || format!("cannot sweep '{}' on {}", verb.name, kind.name());
                            let found = self.sweep_verb(kind, verb, &self.scratch.join(worker.to_string())).context(what)?;
                            rows.lock().expect(POISONED).extend(found.into_iter().map(|row| (position, row)));
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("BUG: a worker panicked"))
        })?;
        let mut rows = rows.into_inner().expect(POISONED);
        rows.sort_by_key(|(position, _)| *position);
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// Sweeps a few states of a program whose syncs do nothing: a harness that finds nothing bad in them would find nothing anywhere.
    fn must_see_what_is_broken(&self) -> Result {
        let verb = VERBS.iter().find(|verb| verb.name == "snapshot-changed").expect("BUG: the verb is in the table");
        let scratch = self.scratch.join("without-sync");
        for kind in self.kinds.iter().filter(|kind| kind.can_be_cut()) {
            let mut stage = Stage::new(self, *kind, verb, &scratch)?;
            stage.without_sync = true;
            let (_, problems) = stage.try_at(Mode::Cut { is_journal_committed: true }, stage.n_calls + 1)?;
            ensure!(!problems.is_empty(), "a power cut after a snapshot without a single sync is judged good on {}", kind.name());
        }
        Ok(())
    }

    fn sweep_verb(&self, kind: Kind, verb: &'static Verb, scratch: &Path) -> Result<Vec<Row>> {
        let is_first = kind == self.kinds[0];
        let is_wanted = |mode: &&Mode| {
            mode.is_possible(kind)
                && (!mode.is_alike_everywhere() || is_first)
                && !(self.is_short && self.is_spared(**mode, verb, is_first))
        };
        let modes: Vec<Mode> = self.modes.iter().filter(is_wanted).copied().collect();
        if modes.is_empty() {
            return Ok(Vec::new());
        }
        let mut stage = Stage::new(self, kind, verb, scratch)?;
        let rows = modes.into_iter().map(|mode| {
            let row = stage.sweep(self, mode)?;
            if !self.json {
                eprintln!("{}", row.line());
                row.bad.iter().take(SHOWN).for_each(|bad| eprintln!("  {bad}"));
            }
            Ok(row)
        });
        rows.collect()
    }

    /// Says whether the short form leaves a sweep out: verbs that ask another host take twice as long, a kill leaves the same on each filesystem, and
    /// of the errors each verb meets its share.
    fn is_spared(&self, mode: Mode, verb: &Verb, is_first: bool) -> bool {
        let asks = verb.brings != Brings::Nothing;
        if BRIEF.contains(&verb.name) {
            return !is_first || !matches!(mode, Mode::Kill | Mode::Cut { is_journal_committed: true });
        }
        let at = |name: &str| VERBS.iter().position(|verb| verb.name == name).unwrap_or_default();
        let turn = at(verb.name) + Mode::all().iter().position(|known| *known == mode).unwrap_or_default();
        !is_first && (asks || mode == Mode::Kill) || mode.is_error() && turn % SHARE != 0
    }

    /// Returns the calls at which a verb is struck; one more than it makes stands for the moment after its end.
    fn points(&self, stage: &Stage, mode: Mode) -> Vec<u64> {
        let all = 1..=stage.n_calls + u64::from(matches!(mode, Mode::Kill | Mode::Cut { .. }));
        if let Some((first, last)) = self.at {
            return (first.max(1)..=last.min(*all.end())).collect();
        }
        let is_thin = stage.kind != self.kinds[0] || stage.verb.brings != Brings::Nothing || mode == Mode::GcMeanwhile;
        let n_samples = self.n_samples.map(|n| if self.is_short && is_thin { n - 1 } else { n });
        match if mode.is_error() { self.n_error_samples } else { n_samples } {
            Some(n) if n < *all.end() => spread(n, *all.end(), u64::from(mode_seed(mode))),
            _ => all.collect(),
        }
    }
}

/// The short form only kills these and cuts their power: most of what they do, others do, too.
const BRIEF: &[&str] = &[
    "rm-cached",
    "gc-again",
    "maintain-again",
    "snapshot-roll-up",
    "rollback-half",
    "resume-rerun",
    "resume-done",
    "switch",
    "snap",
    "exec",
    "ci",
    "abort",
    "sync",
    "drop-lapse",
    "drop",
];

/// So many verbs in a row share the errors among them in the short form.
const SHARE: usize = 3;

/// So many bad states of a sweep are shown while it runs.
const SHOWN: usize = 5;

const POISONED: &str = "BUG: a thread panicked while it held the lock";

/// Different modes look at different calls.
fn mode_seed(mode: Mode) -> u32 {
    mode.name().bytes().fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)))
}

/// Returns `n` of the numbers from 1 to `last`, one out of each of `n` equal parts; the last one is always among them if there are several.
fn spread(n: u64, last: u64, seed: u64) -> Vec<u64> {
    let at = |part: u64| {
        let (from, to) = (part * last / n, (part + 1) * last / n);
        from + 1 + seed % (to - from)
    };
    let mut points: Vec<u64> = (0..n).map(at).collect();
    if let Some(end) = points.last_mut().filter(|_| n > 1) {
        *end = last;
    }
    points
}

/// Reads the number of a call, or two of them with two dots between.
fn range(text: &std::ffi::OsStr) -> Result<(u64, u64)> {
    let text = text.to_str().unwrap_or_default();
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let number = |text: &str| text.parse().map_err(|_| Failure(format!("'{text}' is no number of a call")));
    Ok((number(first)?, number(last)?))
}

fn named<T>(name: OsString, known: impl Iterator<Item = (String, T)>) -> Result<T> {
    let mut names = Vec::new();
    for (known, value) in known {
        if name == known.as_str() {
            return Ok(value);
        }
        names.push(known);
    }
    Err(Failure(format!("'{}' is unknown; there are: {}", name.display(), names.join(", "))))
}

/// One verb on one filesystem, with all that its states are compared with.
struct Stage {
    verb: &'static Verb,
    kind: Kind,
    place: Place,
    disk: Disk,
    before: State,
    old: Disk,
    new: Disk,
    history: Option<(String, String)>,
    index: String,
    refs: String,
    held: String,
    n_calls: u64,
    output: PathBuf,
    without_sync: bool,
}

impl Stage {
    /// Prepares the filesystem and does the control run, which must pass.
    fn new(request: &Request, kind: Kind, verb: &'static Verb, scratch: &Path) -> Result<Stage> {
        let mut disk = Disk::new(kind, scratch, "disk")?;
        let top = disk.path().to_owned();
        let place = Place::new(&request.gdo, &top, request.n_threads).for_verb(verb, &scratch.join("elsewhere"))?;
        disk.mount()?;
        std::fs::write(place.top.join(disk::FOREIGN), "somebody else's file\n")?;
        (verb.prepare)(&place).context(|| "cannot prepare")?;
        disk.unmount()?;
        let before = disk.state()?;
        let output = scratch.join("output.txt");
        let old = Disk::with(kind, scratch, "old", &before)?;

        disk.mount()?;
        let plan = Plan { at: 0, strike: Strike::Never, below: &place.top, without_sync: false };
        let traced = trace::run(&place.command(verb), &File::create(&output)?, plan)?;
        let said = || std::fs::read_to_string(&output).unwrap_or_default();
        ensure!(traced.code == Some(0), "the control run exits with {:?}: {}", traced.code, said());
        let (history, index, refs) = (verbs::history(&place)?, verbs::index(&place)?, verbs::refs(&place)?);
        let held = elsewhere::held(&place, verb)?;
        disk.unmount()?;
        let new = Disk::with(kind, scratch, "new", &disk.state()?)?;
        let (n_calls, without_sync) = (traced.n_calls, request.without_sync);
        let mut stage =
            Stage { verb, kind, place, disk, before, old, new, history, index, refs, held, n_calls, output, without_sync };
        stage.old.mount()?;
        stage.new.mount()?;
        let problems = stage.try_at(Mode::Kill, 0)?.1;
        ensure!(problems.is_empty(), "the control run is judged bad, so the sweep would show nothing: {}", problems.join("\n  "));
        Ok(stage)
    }

    fn sweep(&mut self, request: &Request, mode: Mode) -> Result<Row> {
        let started = Instant::now();
        let points = request.points(self, mode);
        let mut row = Row {
            verb: self.verb.name,
            mode: mode.name(),
            is_error: mode.is_error(),
            kind: self.kind.name(),
            n_calls: self.n_calls,
            n_states: points.len() as u64,
            bad: Vec::new(),
            seconds: 0.0,
        };
        for at in points {
            let (struck, problems) = self.try_at(mode, at).context(|| format!("{} at {at}", mode.name()))?;
            if !problems.is_empty() {
                row.bad.push(Bad { at, struck: struck.unwrap_or_else(|| "after its end".into()), problems });
            }
        }
        row.seconds = started.elapsed().as_secs_f64();
        Ok(row)
    }

    /// Makes one state and judges it; 0 disturbs nothing.
    fn try_at(&mut self, mode: Mode, at: u64) -> Result<(Option<String>, Vec<String>)> {
        self.disk.set(&self.before)?;
        self.disk.mount()?;
        self.place.sockets().map_or(Ok(()), Sockets::clear)?;
        let traced = match self.strike(mode, at) {
            Ok(traced) => traced,
            Err(why) => {
                // It did not end by itself; what it left is of no interest then.
                self.disk.unmount()?;
                return Ok((None, vec![why.0]));
            }
        };
        let mut problems = Vec::new();
        if let Mode::Cut { is_journal_committed } = mode {
            if traced.struck.is_none() {
                self.disk.cut(is_journal_committed)?;
            }
            self.disk.unmount()?;
            self.disk.forget_caches()?;
            self.disk.mount().context(|| "cannot mount again")?;
        } else if let Some(code) = traced.code {
            problems.extend(self.ending(code));
        }
        let reference = Reference {
            old: &self.old.path().join("work"),
            new: &self.new.path().join("work"),
            history: self.history.clone(),
            index: self.index.clone(),
            refs: self.refs.clone(),
            held: self.held.clone(),
        };
        problems.extend(judge::state(&self.place, &reference, self.verb, traced.code == Some(0)));
        problems.extend(judge::again(&self.place, &reference, self.verb));
        self.disk.unmount()?;
        Ok((traced.struck, problems))
    }

    fn strike(&self, mode: Mode, at: u64) -> Result<Traced> {
        let disk = &self.disk;
        let mut at_the_call = || match mode {
            Mode::Cut { is_journal_committed } => disk.cut(is_journal_committed),
            Mode::GcMeanwhile => verbs::collect_garbage(&self.place),
            _ => Ok(()),
        };
        let strike = match mode {
            Mode::Fail { errno, for_good, .. } => Strike::Fail { errno, for_good },
            Mode::GcMeanwhile => Strike::Freeze(&mut at_the_call),
            _ => Strike::Kill(&mut at_the_call),
        };
        let plan = Plan { at, strike, below: &self.place.top, without_sync: self.without_sync };
        trace::run(&self.place.command(self.verb), &File::create(&self.output)?, plan)
    }

    /// Says what is wrong with the way in which the program ended by itself.
    fn ending(&self, code: i32) -> Option<String> {
        let said = std::fs::read_to_string(&self.output).unwrap_or_default();
        let said = said.trim();
        match code {
            0 => None,
            70 => Some(format!("it has a bug: {said}")),
            128.. => Some(format!("it was ended by signal {}: {said}", code - 128)),
            _ if said.is_empty() => Some(format!("it exits with {code} and does not say why")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_and_end_with_the_last() {
        assert_eq!(spread(3, 9, 0), [1, 4, 9]);
        assert_eq!(spread(3, 9, 1), [2, 5, 9]);
        assert_eq!(spread(1, 9, 13), [5]);
        assert_eq!(spread(9, 9, 77), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn modes_have_different_names_and_eintr_happens_once() {
        let names: Vec<String> = Mode::all().into_iter().map(Mode::name).collect();
        assert_eq!(names.len(), 17);
        assert!(names.contains(&"EINTR".to_owned()) && !names.contains(&"EINTR-on".to_owned()));
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    }
}
