//! `cargo xtask concurrency`: many runs at once on few repositories that share one chunk store, while their trees change, and while processes of
//! theirs are stopped, continued and killed at random.
//!
//! Rounds go on from each other in blocks; each block begins with nothing, and with a seed of its own by which it can be played again as far as the
//! scheduler plays along. After each round nothing may be damaged, and everything must go on without help.

mod judge;
mod nemesis;
mod runs;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::acceptance::program;
use crate::command::{Context, Failure, Result, target_dir};
use crate::crash::verbs::Place;
use crate::fixtures::Seeded;

use nemesis::{Groups, Nemesis};
use runs::{Ended, Kind, LOCKED};
use tree::Changer;

struct Request {
    seed: u64,
    n_rounds: u64,
    n_workers: u64,
    gdo: PathBuf,
    scratch: PathBuf,
}

/// Rounds that go on from each other.
const ROUNDS_OF_BLOCK: u64 = 10;
/// Runs that each worker does in a round.
const RUNS: u64 = 3;
/// So often a run is tried again that finds itself locked out.
const TRIES: u64 = 4;
/// Repositories with a tree of their own, all of which keep their chunks in one store.
const PLACES: [&str; 3] = ["a", "b", "c"];

/// Runs `cargo xtask concurrency`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let request = Request::parse(args)?;
    let started = Instant::now();
    let mut sums = Sums::default();
    let mut problems = Vec::new();
    let n_blocks = request.n_rounds.div_ceil(ROUNDS_OF_BLOCK);
    for block in 0..n_blocks {
        let seed = request.seed + block;
        let n_rounds = ROUNDS_OF_BLOCK.min(request.n_rounds - block * ROUNDS_OF_BLOCK);
        let found = Block::new(&request, seed)?.play(n_rounds, &mut sums);
        let found = found.unwrap_or_else(|Failure(why)| vec![format!("it could not go on: {why}")]);
        for problem in &found {
            eprintln!("--seed {seed} --rounds {n_rounds}: {problem}");
        }
        let is_bad = !found.is_empty();
        problems.extend(found);
        if is_bad {
            break; // what lies there is evidence
        }
    }
    print!("{sums}");
    println!(
        "{} problems in {} rounds of {} workers, {:.1} minutes",
        problems.len(),
        sums.n_rounds,
        request.n_workers,
        started.elapsed().as_secs_f64() / 60.0
    );
    if problems.is_empty() {
        fs::remove_dir_all(&request.scratch)?;
    }
    Ok(ExitCode::from(u8::from(!problems.is_empty())))
}

impl Request {
    fn parse(args: Vec<OsString>) -> Result<Request> {
        let mut request =
            Request { seed: 1, n_rounds: 4, n_workers: 20, gdo: PathBuf::new(), scratch: target_dir().join("concurrency") };
        let mut gdo = None;
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| Failure(format!("{} needs a value", arg.display())));
            let number = |value: OsString| value.to_str().and_then(|value| value.parse().ok()).ok_or("not a number");
            match arg.to_str().unwrap_or_default() {
                "--full" => request.n_rounds = 200,
                "--rounds" => request.n_rounds = number(value()?)?,
                "--seed" => request.seed = number(value()?)?,
                "--workers" => request.n_workers = number(value()?)?,
                "--gdo" => gdo = Some(PathBuf::from(value()?)),
                "--scratch" => request.scratch = std::path::absolute(value()?)?,
                _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
            }
        }
        request.gdo = program(gdo)?;
        Ok(request)
    }
}

/// What was done, for the report.
#[derive(Default)]
struct Sums {
    n_rounds: u64,
    n_stops: u64,
    n_kills: u64,
    n_commits: u64,
    n_thaws: u64,
    /// By kind: runs, of them ended with 0, locked out, hit, otherwise; and the longest.
    runs: BTreeMap<&'static str, ([u64; 5], Duration)>,
}

impl Sums {
    fn count(&mut self, ended: &Ended) {
        let (counts, longest) = self.runs.entry(ended.kind.name).or_default();
        counts[0] += 1;
        counts[match ended.code {
            _ if ended.is_hit => 3,
            0 => 1,
            LOCKED => 2,
            _ => 4,
        }] += 1;
        *longest = ended.wall.max(*longest);
    }
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        writeln!(
            f,
            "| run | number | ended with 0 | locked out | killed | otherwise | longest |\n|---|---:|---:|---:|---:|---:|---:|"
        )?;
        for (name, ([n, good, locked, hit, other], longest)) in &self.runs {
            writeln!(f, "| {name} | {n} | {good} | {locked} | {hit} | {other} | {:.1} s |", longest.as_secs_f64())?;
        }
        let Sums { n_stops, n_kills, n_commits, n_thaws, .. } = self;
        writeln!(f, "\n{n_stops} stops, {n_kills} kills, {n_commits} commits, {n_thaws} snapshots frozen during a collection")
    }
}

/// Repositories that begin with nothing, and what is known of them.
struct Block<'r> {
    request: &'r Request,
    seed: u64,
    places: Vec<Place>,
    changers: Vec<Changer>,
    scratch: PathBuf,
    /// The commits that a run said to have made, by place.
    acknowledged: Vec<BTreeSet<String>>,
    /// The commits that were restored and found good, by place.
    restored: Vec<BTreeSet<String>>,
}

impl<'r> Block<'r> {
    fn new(request: &'r Request, seed: u64) -> Result<Block<'r>> {
        let top = request.scratch.join(seed.to_string());
        let _ = fs::remove_dir_all(&top);
        let scratch = top.join("runs");
        fs::create_dir_all(&scratch)?;
        let place = |name: &str| Place::new(&request.gdo, &top.join(name), 2).with_store(top.join("store"));
        let places: Vec<Place> = PLACES.iter().map(|name| place(name)).collect();
        let mut changers = Vec::new();
        for (at, place) in places.iter().enumerate() {
            let mut changer = Changer::new(&place.work(), &place.top.join("apart"), seed * 10 + at as u64)?;
            changer.fill()?;
            changers.push(changer);
            place.does(&["init"])?;
            place.does(&["snapshot", "-m", "first", "."])?;
        }
        let none = vec![BTreeSet::new(); places.len()];
        Ok(Block { request, seed, places, changers, scratch, acknowledged: none.clone(), restored: none })
    }

    /// Plays all rounds and returns what is wrong, after the first round in which something is.
    fn play(mut self, n_rounds: u64, sums: &mut Sums) -> Result<Vec<String>> {
        for round in 0..n_rounds {
            let mut problems = self.round(round, sums)?;
            problems.extend(self.judge()?);
            if round % 3 == 0 {
                problems.extend(self.freeze_a_snapshot(round)?);
                sums.n_thaws += 1;
            }
            sums.n_rounds += 1;
            if !problems.is_empty() {
                return Ok(problems.into_iter().map(|problem| format!("round {round}: {problem}")).collect());
            }
        }
        sums.n_commits += self.acknowledged.iter().map(|commits| commits.len() as u64).sum::<u64>();
        self.judge_all_commits()?;
        if let Some(top) = self.scratch.parent() {
            fs::remove_dir_all(top)?;
        }
        Ok(Vec::new())
    }

    /// Lets all workers do their runs, and disturbs them.
    fn round(&mut self, round: u64, sums: &mut Sums) -> Result<Vec<String>> {
        let groups = Groups::default();
        let (is_done, n_left) = (AtomicBool::new(false), AtomicU64::new(self.request.n_workers));
        let seed = Seeded::new(self.seed * 1000 + round).next();
        let (places, scratch) = (&self.places, &self.scratch);
        let problems = Mutex::new(Vec::new());
        let note = |problem: String| problems.lock().expect(POISONED).push(problem);
        let ended = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for worker in 0..self.request.n_workers {
                let (groups, ended, n_left, note) = (&groups, &ended, &n_left, &note);
                scope.spawn(move || {
                    let mut dice = Seeded::new(seed ^ worker << 32);
                    for at in 0..RUNS {
                        let number = format!("{round}-{worker}-{at}");
                        match tried(places, &number, scratch, groups, &mut dice) {
                            Ok(more) => ended.lock().expect(POISONED).extend(more),
                            Err(Failure(why)) => note(why),
                        }
                    }
                    n_left.fetch_sub(1, Ordering::Relaxed);
                });
            }
            for changer in &mut self.changers {
                let (is_done, note) = (&is_done, &note);
                scope.spawn(move || {
                    while !is_done.load(Ordering::Relaxed) {
                        if let Err(Failure(why)) = changer.change() {
                            note(format!("cannot change the tree: {why}"));
                        }
                        std::thread::sleep(Duration::from_millis(15));
                    }
                });
            }
            let (n_stops, n_kills) = disturb(&groups, seed, &n_left, &note);
            sums.n_stops += n_stops;
            sums.n_kills += n_kills;
            is_done.store(true, Ordering::Relaxed);
        });
        // Children of a run that was killed may live on for a moment.
        let deadline = Instant::now() + nemesis::STANDSTILL * 2;
        while !groups.remaining().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut problems = problems.into_inner().expect(POISONED);
        problems.extend(groups.remaining().into_iter().map(|group| format!("{} does not end", group.what)));
        for (place, ended) in ended.into_inner().expect(POISONED) {
            sums.count(&ended);
            problems.extend(ended.problem());
            self.acknowledged[place].extend(ended.commit);
        }
        Ok(problems)
    }
}

/// Stops, continues and kills until no worker is left; returns how many stops and kills that were.
fn disturb(groups: &Groups, seed: u64, n_left: &AtomicU64, note: &(dyn Fn(String) + Sync)) -> (u64, u64) {
    let mut nemesis = Nemesis::new(groups, seed ^ 0xfeed);
    let mut looked = Instant::now();
    while n_left.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(nemesis.act());
        if looked.elapsed() > Duration::from_millis(300) {
            looked = Instant::now();
            groups.standing().into_iter().for_each(|what| note(format!("{what} stands still for more than 5 s")));
        }
    }
    nemesis.n_done
}

/// Does a run of some kind, again while it is locked out; returns how each of them ended, with the place.
fn tried(places: &[Place], number: &str, scratch: &Path, groups: &Groups, dice: &mut Seeded) -> Result<Vec<(usize, Ended)>> {
    // Half of all in one place.
    let at = (dice.next() % 6).saturating_sub(3) as usize % places.len();
    let kind = Kind::any(dice);
    let mut all = Vec::new();
    for n_tries in 0..TRIES {
        let number = format!("{number}-{n_tries}");
        let ended = runs::run(kind, &places[at], &number, scratch, groups, dice).context(|| places[at].top.display())?;
        let is_locked_out = ended.code == LOCKED && !ended.is_hit;
        all.push((at, ended));
        if !is_locked_out {
            break;
        }
        std::thread::sleep(Duration::from_millis(10 + dice.next() % 300));
    }
    Ok(all)
}

const POISONED: &str = "BUG: a thread panicked while it held the lock";
