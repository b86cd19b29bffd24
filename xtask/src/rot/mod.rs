//! The rot sweep: every stored file is damaged in every way, and the damage must be found, do no harm, and be repaired from a second copy.

mod faults;
mod place;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::Value;

use crate::acceptance::program;
use crate::command::{Context, Failure, Outcome, Result, target_dir};
use crate::compare::{Difference, Options, What, compare};
use crate::{ensure, packages};

use faults::{Fault, KINDS, SHORT};
use place::{Place, REVISIONS};

/// A kind of stored files: what the table calls it, and how a path below `.git` is told to be of it.
type Class = (&'static str, fn(&str) -> bool);

/// The first that fits counts.
const CLASSES: &[Class] = &[
    ("lock, count of leases", |p| p.ends_with("lock") || p.ends_with("/leases")),
    ("chunk pack", |p| p.starts_with("devops/store/packs/")),
    ("index segment", |p| p.ends_with(".segment")),
    ("segment list", |p| p.ends_with("index/list")),
    ("store format", |p| p == "devops/store/format"),
    ("list of repositories", |p| p == "devops/store/repositories"),
    ("mirror", |p| p == "devops/state/mirror"),
    ("host log", |p| p == "devops/state/log"),
    ("output of a command", |p| p.starts_with("devops/state/output/")),
    ("note about the index", |p| p == "devops/state/index-checksum"),
    ("note of what was verified", |p| p == "devops/state/verified"),
    ("note about the place", |p| p == "devops/state/enrolled"),
    ("git pack", |p| p.ends_with(".pack")),
    ("git pack index", |p| p.ends_with(".idx")),
    ("git cache (rev, bitmap, graph)", |p| p.starts_with("objects/pack/") || p.starts_with("objects/info/commit-graph")),
    ("list for dumb servers", |p| p == "objects/info/packs" || p == "info/refs"),
    ("loose object", |p| p.starts_with("objects/")),
    ("loose ref", |p| p.starts_with("refs/")),
    ("packed-refs", |p| p == "packed-refs"),
    ("HEAD", |p| p == "HEAD"),
    ("config", |p| p == "config"),
    ("git index", |p| p == "index"),
    ("attributes, sparse-checkout", |p| p.starts_with("info/")),
    ("log of a ref", |p| p.starts_with("logs/")),
];

/// Faults in a kind of files that `check` need not name, and why not.
///
/// The second of the function's arguments is the file before the fault and after it.
type Excuse = (&'static str, fn(&Fault, [&Path; 2]) -> bool, &'static str);

/// Nothing that is delivered or kept depends on the bytes; each fault is still tried, and must do no harm.
const EXCUSES: &[Excuse] = &[
    (
        "lock, count of leases",
        |_, _| true,
        "the lock is the kernel's; the text is for messages; of the leases only the count of a run in progress matters",
    ),
    ("list for dumb servers", |_, _| true, "only git's plain-HTTP servers publish them; git writes them anew"),
    ("note about the index", |_, _| true, "without it every file is looked at once more; it has a checksum of its own"),
    (
        "note about the place",
        |_, _| true,
        "without it a repository that is moved has two lines in the list of repositories, and gc asks",
    ),
    (
        "note of what was verified",
        |_, _| true,
        "without it everything is unpacked once more; it has a checksum of its own, and what an earlier one says is true of bytes wherever they are",
    ),
    ("log of a ref", |_, _| true, "names, times and messages of old moves are for people; the log alone never moves a ref"),
    ("output of a command", |_, _| true, "what a command said is for people"),
    (
        "host log",
        |fault, files| {
            matches!(fault, Fault::Truncate(_) | Fault::Append | Fault::Zero(_) | Fault::Garbage(_)) && is_cut_off(files)
        },
        "whole lines and a part of one, or zeros, is what a power cut leaves",
    ),
    ("git cache (rev, bitmap, graph)", |fault, _| *fault == Fault::Delete, "git works without them and makes them anew"),
    (
        "loose object",
        |fault, files| matches!(fault, Fault::Flip(_)) && inflate_alike(files),
        "zlib, asked by Python, gets the same out of it, checksum and all: up to seven bits before the checksum mean nothing, and some things can be said \
         in two ways",
    ),
    (
        "mirror",
        |fault, _| matches!(fault, Fault::Stale(_)),
        "an earlier mirror is one that git's log explains; the next snapshot renews it",
    ),
    (
        "segment list",
        |fault, _| matches!(fault, Fault::Stale(_)),
        "an earlier list: packs that it lacks are indexed when a chunk is missed, and by check",
    ),
];

struct Request {
    is_full: bool,
    without_data: bool,
    n_jobs: usize,
    only: Option<String>,
    json: bool,
    gdo: PathBuf,
    scratch: PathBuf,
}

/// What a fault led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Found,
    Harmless,
}

#[derive(Default)]
struct Tally {
    n_found: u64,
    n_harmless: u64,
    n_bad: u64,
    n_repaired: u64,
    n_repairs: u64,
}

struct Job {
    class: usize,
    path: String,
    /// Another file of the same kind.
    other: Option<String>,
    fault: Fault,
    repair: Option<Repair>,
    /// Which of the revisions and files are looked at.
    turn: usize,
}

/// Where what is lost is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    /// A repository with its store.
    SecondCopy,
    /// Directories that have the files.
    Files,
}

/// Runs `cargo xtask rot`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let request = Request::parse(args)?;
    packages::install(&[packages::TEST])?;
    ensure!(rustix::process::geteuid().is_root(), "run this as root: owners and devices are to be restored");
    let started = Instant::now();
    let (tally, bad) = request.sweep()?;
    let text = if request.json { json(&tally, &bad) } else { markdown(&tally, &bad, started.elapsed().as_secs_f64() / 60.0) };
    print!("{text}");
    Ok(ExitCode::from(u8::from(!bad.is_empty())))
}

type Tallies = BTreeMap<(usize, usize), Tally>;

impl Request {
    fn parse(args: Vec<OsString>) -> Result<Request> {
        let mut request = Request {
            is_full: false,
            without_data: false,
            n_jobs: std::thread::available_parallelism().map_or(1, usize::from),
            only: None,
            json: false,
            gdo: PathBuf::new(),
            scratch: target_dir().join("rot"),
        };
        let (mut args, mut gdo) = (args.into_iter(), None);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| Failure(format!("{} needs a value", arg.display())));
            match arg.to_str().unwrap_or_default() {
                "--full" => request.is_full = true,
                "--without-data" => request.without_data = true,
                "--only" => request.only = Some(value()?.to_string_lossy().into_owned()),
                "--jobs" => request.n_jobs = value()?.to_str().and_then(|n| n.parse().ok()).ok_or("not a number")?,
                "--json" => request.json = true,
                "--gdo" => gdo = Some(PathBuf::from(value()?)),
                "--scratch" => request.scratch = std::path::absolute(value()?)?,
                _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
            }
        }
        request.gdo = program(gdo)?;
        Ok(request)
    }

    fn sweep(&self) -> Result<(Tallies, Vec<String>)> {
        let place = |n: usize| Place { gdo: self.gdo.clone(), top: self.scratch.join(n.to_string()) };
        let places: Vec<Place> = (0..self.n_jobs.max(1)).map(place).collect();
        places[0].build()?;
        for place in &places[1..] {
            place.build_like(&places[0])?;
        }
        for place in &places {
            self.control(place).context(|| "the control run fails")?;
        }
        let jobs = self.jobs(&places[0])?;
        let n_all = jobs.len();
        eprintln!("{n_all} faults");
        let todo = Mutex::new(jobs.into_iter());
        let (tallies, bad) = (Mutex::new(Tallies::new()), Mutex::new(Vec::new()));
        let work = |place: &Place| -> Result {
            loop {
                let next = todo.lock().expect(POISONED).next();
                let Some(job) = next else { return Ok(()) };
                if job.turn > 0 && job.turn % TELL == 0 {
                    eprintln!("{} of {n_all} tried, now '{}'", job.turn, job.path);
                }
                let outcome = self.judge(place, &job)?;
                let mut tallies = tallies.lock().expect(POISONED);
                let tally = tallies.entry((job.class, job.fault.kind())).or_default();
                match outcome {
                    None => (),
                    Some(Ok(End::Found)) => {
                        tally.n_found += 1;
                        tally.n_repairs += u64::from(job.repair.is_some());
                        tally.n_repaired += u64::from(job.repair.is_some());
                    }
                    Some(Ok(End::Harmless)) => tally.n_harmless += 1,
                    Some(Err(Failure(why))) => {
                        tally.n_bad += 1;
                        let line = format!("{} {:?}: {why}", job.path, job.fault);
                        eprintln!("BAD {line}");
                        bad.lock().expect(POISONED).push(line);
                    }
                }
            }
        };
        let work = &work;
        std::thread::scope(|scope| {
            let workers: Vec<_> = places.iter().map(|place| scope.spawn(move || work(place))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("BUG: a worker panicked"))
        })?;
        crate::fixtures::remove(&self.scratch)?;
        Ok((tallies.into_inner().expect(POISONED), bad.into_inner().expect(POISONED)))
    }

    /// Nothing is damaged: nothing may be found, everything must come back, and a repair must change nothing.
    fn control(&self, place: &Place) -> Result {
        let said = check(place, &["check", "--data", "--json"])?;
        ensure!(said.code == 0, "check finds what is not there: {}", said.said());
        delivers(place, true, None)?;
        let second = place.second();
        place.runs(&["check", "--data", "--repair", "--from", &second.to_string_lossy()])?.exits(0)?;
        delivers(place, true, None)?;
        place.reset()
    }

    fn jobs(&self, place: &Place) -> Result<Vec<Job>> {
        let git_dir = place.pristine().join(".git");
        let mut files = Vec::new();
        list(&git_dir, "", &mut files)?;
        files.sort();
        let class_of = |path: &str| CLASSES.iter().position(|(_, is_it)| is_it(path));
        let mut by_class: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for path in files {
            let class = class_of(&path).ok_or_else(|| Failure(format!("no class for '{path}'")))?;
            by_class.entry(class).or_default().push(path);
        }
        let mut jobs = Vec::new();
        for (class, paths) in by_class {
            if self.only.as_deref().is_some_and(|only| only != CLASSES[class].0) {
                continue;
            }
            for (n, path) in paths.iter().enumerate() {
                // Of many alike the first few stand for all.
                let n_most = match (self.is_full, CLASSES[class].0) {
                    (true, _) => 12,
                    (false, "git pack" | "loose object" | "loose ref") => 2,
                    (false, _) => 1,
                };
                let is_spare = n >= n_most;
                if is_spare {
                    continue;
                }
                let other = paths[(n + 1) % paths.len()].clone();
                let other = (other != *path).then_some(other);
                let len = fs::metadata(git_dir.join(path))?.len();
                // What begins alike is tried bit by bit once, and at every eighth bit, each time others, from then on.
                let thin = match (self.is_full, n) {
                    (true, 0) => 1,
                    (true, _) => 8,
                    (false, _) => SHORT,
                };
                for (i, fault) in Fault::all(len, thin, n as u64 * 37).into_iter().enumerate() {
                    let is_flip = matches!(fault, Fault::Flip(_));
                    let repair = match (is_flip && i % 16 != 0 || !self.is_full && i % 4 != 3, CLASSES[class].0) {
                        // Who else uses a store, and what was done here, nobody but a person can know.
                        (true, _) | (_, "list of repositories" | "host log") => None,
                        (false, "chunk pack") if i % 2 == 1 => Some(Repair::Files),
                        (false, _) => Some(Repair::SecondCopy),
                    };
                    let other = other.clone().filter(|_| matches!(fault, Fault::Swap | Fault::Elsewhere(_)));
                    let turn = jobs.len();
                    jobs.push(Job { class, path: path.clone(), other, fault, repair, turn });
                }
            }
        }
        // Neighbours in the list would end at the same time: the long ones spread over the workers.
        Ok(jobs)
    }

    /// Tries one fault; `None` if it changes nothing here.
    fn judge(&self, place: &Place, job: &Job) -> Result<Option<Result<End>>> {
        let strike = || -> Result<bool> {
            place.reset()?;
            let git_dir = place.live().join(".git");
            let other = job.other.as_ref().map(|other| git_dir.join(other));
            let path = git_dir.join(&job.path);
            if !path.exists() || other.as_ref().is_some_and(|other| !other.exists()) {
                return Err(Failure(format!("BUG: '{}' is not here", path.display())));
            }
            job.fault.strike(&path, &place.earlier().join(".git").join(&job.path), other.as_deref())
        };
        if !strike()? {
            return Ok(None);
        }
        let found = self.checked(place, job);
        let found = match found {
            Ok(End::Found) if job.repair.is_some() => repaired(place, job).map(|()| End::Found),
            other => other,
        };
        strike()?;
        let delivered = delivers(place, matches!(found, Ok(End::Harmless)), Some(job.turn));
        Ok(Some(found.and_then(|end| delivered.map(|()| end))))
    }

    /// Runs `check` on what was struck: it must find it and name the file, or the fault must be excused.
    fn checked(&self, place: &Place, job: &Job) -> Result<End> {
        let args: &[&str] = if self.without_data { &["check", "--json"] } else { &["check", "--data", "--json"] };
        let said = check(place, args)?;
        let name = CLASSES[job.class].0;
        let files = [place.pristine(), place.live()].map(|top| top.join(".git").join(&job.path));
        let is_excused = || EXCUSES.iter().any(|(class, is_it, _)| *class == name && is_it(&job.fault, [&files[0], &files[1]]));
        let findings = findings(&said)?;
        if findings.is_empty() {
            ensure!(said.code == 0, "check finds nothing and exits with {}", said.code);
            ensure!(is_excused(), "MISSED by check");
            return Ok(End::Harmless);
        }
        ensure!(said.code != 0, "check has findings and exits with 0");
        let names = |path: &str| {
            let file = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
            findings.iter().any(|finding| finding.contains(&file) || finding.contains(&loose_name(path)))
        };
        let is_named = names(&job.path) || job.other.as_deref().is_some_and(names);
        ensure!(is_named, "check does not name the file: {}", findings.join(" | "));
        Ok(End::Found)
    }
}

/// Says whether the second file is the first one up to some place, and from there on no whole line, or zeros.
fn is_cut_off([before, after]: [&Path; 2]) -> bool {
    let (Ok(before), Ok(after)) = (fs::read(before), fs::read(after)) else { return false };
    let same = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let rest = &after[same..];
    !rest.contains(&b'\n') || rest.iter().all(|b| *b == 0)
}

/// Says whether zlib makes the same of two files.
fn inflate_alike(files: [&Path; 2]) -> bool {
    let script = "import sys, zlib; a, b = (zlib.decompress(open(path, 'rb').read()) for path in sys.argv[1:]); sys.exit(a != b)";
    std::process::Command::new("python3").args(["-c", script]).args(files).output().is_ok_and(|output| output.status.success())
}

/// Returns the object name that the path of a loose object stands for.
fn loose_name(path: &str) -> String {
    path.trim_start_matches("objects/").replace('/', "")
}

/// Runs `check`, which must end by itself and not by a panic.
fn check(place: &Place, args: &[&str]) -> Result<Outcome> {
    let said = place.runs(args)?;
    ends_well(&said)?;
    Ok(said)
}

fn ends_well(said: &Outcome) -> Result {
    ensure!(!matches!(said.code, 70 | 101 | 124 | 125.. | -1), "'{}' ends with {}: {}", said.line, said.code, said.tail(5));
    ensure!(!said.said().contains("panicked"), "'{}' panics: {}", said.line, said.tail(5));
    Ok(())
}

/// Returns what `check --json` found, each finding as one text that has a remedy; an error counts as one.
fn findings(said: &Outcome) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(&said.stdout);
    let mut all = Vec::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).map_err(|why| Failure(format!("check prints no JSON: {why}: {line}")))?;
        for finding in value["findings"].as_array().into_iter().flatten() {
            let field = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            ensure!(!field("remedy").is_empty(), "a finding without a remedy: {finding}");
            all.push(format!("{}: {} [{}]", field("what"), field("problem"), field("remedy")));
        }
        if let Some(error) = value["error"].as_str() {
            let has_remedy = ["'gdo ", "'git ", "remove", "fetch"].iter().any(|words| error.contains(words));
            ensure!(has_remedy, "an error without a remedy: {error}");
            all.push(error.to_owned());
        }
    }
    Ok(all)
}

/// Repairs from the second copy, or from files; then nothing may be wrong any more.
fn repaired(place: &Place, job: &Job) -> Result {
    // Files alone, as a work tree has them, now and once: between them they have every chunk.
    let from = match job.repair {
        Some(Repair::Files) => [place.expected("HEAD"), place.expected("v1")],
        _ => [place.second(), place.second()],
    };
    let from = from.map(|from| from.to_string_lossy().into_owned());
    let said = place.runs(&["check", "--data", "--repair", "--from", &from[0], "--from", &from[1]])?;
    ensure!(said.code == 0, "REPAIR fails with {}: {}", said.code, said.tail(6));
    let said = check(place, &["check", "--data", "--json"])?;
    ensure!(said.code == 0, "after REPAIR there are findings: {}", said.tail(6));
    delivers(place, true, None).context(|| "after REPAIR")
}

/// Restores every revision and prints files, or the one of each whose turn it is: right bytes or a clear error, and if `must_succeed`, right bytes.
fn delivers(place: &Place, must_succeed: bool, only: Option<usize>) -> Result {
    let is_wanted = |n: usize, of: usize| only.is_none_or(|only| only % of == n);
    for (_, rev) in REVISIONS.iter().enumerate().filter(|(n, _)| is_wanted(*n, REVISIONS.len())) {
        let target = place.top.join("target");
        crate::fixtures::remove(&target)?;
        let said = place.runs(&["restore", "--quiet", "--source", rev, "--target", &target.to_string_lossy()])?;
        ends_well(&said)?;
        ensure!(said.code == 0 || !must_succeed, "restore of {rev} fails with {}: {}", said.code, said.tail(5));
        if said.code != 0 {
            ensure!(!said.stderr.is_empty(), "restore of {rev} fails with {} and says nothing", said.code);
        }
        if target.exists() {
            let differences = compare(&place.expected(rev), &target, &Options { ignore: Vec::new() })?;
            let counts = |found: &&Difference| match said.code {
                0 => !(found.what == What::Mtime && found.path == b"."),
                _ => matches!(found.what, What::Content | What::Target | What::Size | What::Type) && !found.path.contains(&b'~'),
            };
            let wrong: Vec<String> = differences.iter().filter(counts).take(3).map(ToString::to_string).collect();
            ensure!(wrong.is_empty(), "WRONG BYTES in restore of {rev}, exit code {}: {}", said.code, wrong.join("; "));
        }
    }
    for (_, (rev, path)) in PRINTED.iter().enumerate().filter(|(n, _)| is_wanted(*n, PRINTED.len())) {
        let said = place.runs(&["cat", &format!("{rev}:{path}")])?;
        ends_well(&said)?;
        let expected = fs::read(place.expected(rev).join(path))?;
        ensure!(said.code == 0 || !must_succeed, "cat of {rev}:{path} fails: {}", said.tail(5));
        let is_right = if said.code == 0 { said.stdout == expected } else { expected.starts_with(&said.stdout) };
        ensure!(is_right, "WRONG BYTES from cat {rev}:{path}, exit code {}", said.code);
    }
    Ok(())
}

/// Files that are printed: a large one, one whose chunk index is nested, small ones.
const PRINTED: &[(&str, &str)] = &[("HEAD", "large"), ("v1", "nested.img"), ("HEAD", "etc/c"), ("side", "etc/a")];

const POISONED: &str = "BUG: a worker panicked";

/// After so many faults a word is said.
const TELL: usize = 500;

fn list(dir: &Path, prefix: &str, files: &mut Vec<String>) -> Result {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type()?.is_dir() {
            true => list(&entry.path(), &format!("{name}/"), files)?,
            false => files.push(name),
        }
    }
    Ok(())
}

fn markdown(tallies: &Tallies, bad: &[String], minutes: f64) -> String {
    let mut text = String::from(
        "| file | faults | found | harmless | bad | repaired | kinds of faults |\n|---|---:|---:|---:|---:|---:|---|\n",
    );
    let mut total = 0;
    for (class, (name, _)) in CLASSES.iter().enumerate() {
        let here: Vec<(&(usize, usize), &Tally)> = tallies.iter().filter(|((of, _), _)| *of == class).collect();
        let sum = |of: fn(&Tally) -> u64| here.iter().map(|(_, tally)| of(tally)).sum::<u64>();
        let n = sum(|t| t.n_found + t.n_harmless + t.n_bad);
        if n == 0 {
            continue;
        }
        total += n;
        let kinds: Vec<String> =
            here.iter().map(|((_, kind), t)| format!("{} {}", KINDS[*kind], t.n_found + t.n_harmless + t.n_bad)).collect();
        let (found, harmless, bad) = (sum(|t| t.n_found), sum(|t| t.n_harmless), sum(|t| t.n_bad));
        let (repaired, repairs) = (sum(|t| t.n_repaired), sum(|t| t.n_repairs));
        writeln!(text, "| {name} | {n} | {found} | {harmless} | {bad} | {repaired} of {repairs} | {} |", kinds.join(", "))
            .expect(STRING);
    }
    writeln!(text, "\n{} bad of {total} faults, {minutes:.1} minutes", bad.len()).expect(STRING);
    for (class, _, why) in EXCUSES.iter() {
        writeln!(text, "- excused, {class}: {why}").expect(STRING);
    }
    bad.iter().for_each(|line| writeln!(text, "BAD {line}").expect(STRING));
    text
}

const STRING: &str = "BUG: writing to a string failed";

fn json(tallies: &Tallies, bad: &[String]) -> String {
    let row = |((class, kind), tally): (&(usize, usize), &Tally)| {
        serde_json::json!({
            "file": CLASSES[*class].0, "fault": KINDS[*kind], "found": tally.n_found, "harmless": tally.n_harmless,
            "bad": tally.n_bad, "repaired": tally.n_repaired,
        })
    };
    format!("{}\n", serde_json::json!({"rows": tallies.iter().map(row).collect::<Vec<_>>(), "bad": bad}))
}
