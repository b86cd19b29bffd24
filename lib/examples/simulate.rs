//! Simulates hosts that drop copies at once: `simulate [--seeds N] [--first SEED] [--steps N] [--without RULE]...`.
//!
//! The rules are the library's own ([`git_devops::placement`]); around them everything is made up from one seed: hosts whose clocks differ, processes
//! that are stopped for a month in the worst moment, machines that pause without their clocks noticing, crashes, clocks that jump by years, networks
//! that lose answers, disks that burn, stores that are set back to a backup, holders that promise, prove and throw away. Whenever a host removes a
//! chunk, as many others must have it as its terms say, less those that burnt or were thrown away since it asked. Prints the seed of each failure; ends
//! with 1 if there is one. Without one of the rules it must fail.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use git_devops::id::ChunkId;
use git_devops::placement::HolderId;
use git_devops::placement::inquiry::{Answer, Inquiry, Moment, Terms};
use git_devops::placement::ledger::Ledger;

const USAGE: &str = "usage: simulate [--seeds N] [--first SEED] [--steps N] [--without lapse|proof|copies|lock]...";

/// What can be left out, to see that the simulation notices.
#[derive(Clone, Copy, Debug, Default)]
struct Without {
    /// A host drops what it promises still.
    lapse: bool,
    /// Who has a chunk counts, whatever it promises.
    proof: bool,
    /// Who answers counts for several.
    copies: bool,
    /// A host promises again what it is about to remove.
    lock: bool,
}

fn main() -> ExitCode {
    let (mut seeds, mut first, mut steps, mut without) = (10_000_u64, 1_u64, 600_u32, Without::default());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().unwrap_or_default();
        let number = value.parse().ok();
        match (arg.as_str(), number, value.as_str()) {
            ("--seeds", Some(n), _) => seeds = n,
            ("--first", Some(n), _) => first = n,
            ("--steps", Some(n), _) => steps = n as u32,
            ("--without", _, "lapse") => without.lapse = true,
            ("--without", _, "proof") => without.proof = true,
            ("--without", _, "copies") => without.copies = true,
            ("--without", _, "lock") => without.lock = true,
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let started = Instant::now();
    let (mut failed, mut seen) = (Vec::new(), BTreeMap::new());
    for seed in first..first.saturating_add(seeds) {
        let mut world = World::new(seed, without);
        if let Err(problem) = world.run(steps) {
            if failed.len() < 10 {
                eprintln!("seed {seed}: {problem}");
            }
            failed.push(seed);
        }
        world.seen.into_iter().for_each(|(what, n)| *seen.entry(what).or_insert(0_u64) += n);
    }
    println!("| what happened | times |\n|---|---|");
    println!("| runs of {steps} steps, seeds {first} to {} | {seeds} |", first.saturating_add(seeds - 1));
    seen.iter().for_each(|(what, n)| println!("| {what} | {n} |"));
    println!("| **violations** | {} |", failed.len());
    eprintln!("{} s", started.elapsed().as_secs());
    match failed.is_empty() && seen.get("chunks removed").is_some_and(|n| *n > 0) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn is_one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

const N_CHUNKS: usize = 4;
const DAY: u64 = 86_400;
const ACCIDENTS: u64 = 23;

struct World {
    random: Random,
    without: Without,
    terms: Terms,
    /// The true time.
    now: u64,
    hosts: Vec<Host>,
    /// Copies of each chunk that were lost to something else than a drop.
    losses: [u64; N_CHUNKS],
    seen: BTreeMap<&'static str, u64>,
}

struct Host {
    ledger: Ledger,
    has: [bool; N_CHUNKS],
    /// What its clock is ahead of the true time.
    offset: i64,
    /// How long it was paused without a clock noticing.
    lag: u64,
    paused_until: u64,
    is_cut_off: bool,
    is_liar: bool,
    backup: Option<(Ledger, [bool; N_CHUNKS])>,
    /// The latest record of each holder that it knows: generation, and until when.
    records: BTreeMap<HolderId, (u64, u64)>,
    run: Option<Run>,
}

/// A drop that is under way; it holds the host's lock.
struct Run {
    inquiry: Inquiry,
    targets: Vec<usize>,
    to_ask: Vec<usize>,
    /// What is removed next, once it was decided.
    decided: Option<Vec<ChunkId>>,
    stopped_until: u64,
    losses: [u64; N_CHUNKS],
}

impl Host {
    fn wall(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.offset)
    }

    fn moment(&self, now: u64) -> Moment {
        Moment { wall: self.wall(now), boot: Duration::from_secs(now.saturating_sub(self.lag)) }
    }
}

fn chunk(at: usize) -> ChunkId {
    ChunkId::of(&[at as u8])
}

fn proof(at: usize) -> [u8; 32] {
    [at as u8 + 1; 32]
}

impl World {
    fn new(seed: u64, without: Without) -> Self {
        let mut random = Random(seed);
        let copies = 1 + random.below(3) as usize;
        let n_hosts = copies + 1 + random.below(4) as usize;
        let terms = Terms { copies, ..Terms::default() };
        let with_liars = random.is_one_in(4);
        let hosts = (0..n_hosts).map(|at| Host {
            ledger: Ledger::new(HolderId::of_key(&format!("{seed} {at}"))),
            has: [true; N_CHUNKS],
            offset: random.below(terms.max_skew) as i64 - terms.max_skew as i64 / 2,
            lag: 0,
            paused_until: 0,
            is_cut_off: false,
            is_liar: with_liars && random.is_one_in(3),
            backup: None,
            records: BTreeMap::new(),
            run: None,
        });
        let hosts = hosts.collect();
        Self { random, without, terms, now: 2_000_000_000, hosts, losses: [0; N_CHUNKS], seen: BTreeMap::new() }
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn run(&mut self, steps: u32) -> Result<(), String> {
        for step in 0..steps {
            // While somebody asks around, time passes slowly, most of the time.
            let is_busy = (0..self.hosts.len()).any(|host| self.is_busy(host));
            self.now += match self.random.below(if is_busy { 60 } else { 6 }) {
                0 => self.random.below(2 * DAY),
                1 => self.random.below(3600),
                _ => self.random.below(60),
            };
            let host = self.next_host();
            self.step(host).map_err(|problem| format!("step {step}, host {host}, {} copies: {problem}", self.terms.copies))?;
        }
        Ok(())
    }

    /// Returns whose turn it is; who is in the middle of something has it more often.
    fn next_host(&mut self) -> usize {
        let any = self.random.below(self.hosts.len() as u64) as usize;
        let busy: Vec<usize> = (0..self.hosts.len()).filter(|host| self.is_busy(*host)).collect();
        match busy.is_empty() || self.random.is_one_in(3) {
            true => any,
            false => busy[self.random.below(busy.len() as u64) as usize],
        }
    }

    fn step(&mut self, at: usize) -> Result<(), String> {
        if self.now < self.hosts[at].paused_until {
            return Ok(());
        }
        match self.random.below(100) {
            0..=84 if self.is_busy(at) && !self.random.is_one_in(10) => return self.go_on(at),
            0..=19 => self.lapse(at),
            20..=44 if self.hosts[at].run.is_none() => self.begin(at),
            45..=84 => self.synchronise(at),
            85..=99 if self.random.is_one_in(2) => {
                let which = self.random.below(ACCIDENTS);
                self.accident(at, which);
            }
            _ => (),
        }
        Ok(())
    }

    /// Says whether a run is under way there, and not stopped.
    fn is_busy(&self, at: usize) -> bool {
        self.hosts[at].run.as_ref().is_some_and(|run| self.now >= run.stopped_until)
    }

    /// What nobody wishes for.
    fn accident(&mut self, at: usize, which: u64) {
        let month = 30 * DAY;
        let (length, back) = (self.random.below(month), self.random.is_one_in(2));
        let now = self.now;
        match which {
            0..=2 => {
                let Some(run) = &mut self.hosts[at].run else { return };
                run.stopped_until = now + length;
                self.saw("process stopped for up to a month");
            }
            3 => {
                self.hosts[at].paused_until = now + length;
                self.hosts[at].lag += length;
                self.hosts[at].offset -= length as i64;
                self.saw("machine paused with its clocks");
            }
            4..=5 => {
                self.hosts[at].run = None;
                self.saw("crash");
            }
            6 => {
                let jump = match self.random.below(3) {
                    0 => self.random.below(2 * self.terms.max_skew),
                    1 => self.random.below(3 * DAY),
                    _ => self.random.below(3650 * DAY),
                } as i64;
                self.hosts[at].offset += if back { -jump } else { jump };
                self.saw("clock jumped");
            }
            7..=14 => {
                let skew = self.terms.max_skew;
                self.hosts[at].offset = self.random.below(skew) as i64 - skew as i64 / 2;
            }
            15..=16 => self.hosts[at].is_cut_off = !self.hosts[at].is_cut_off,
            17 if self.random.is_one_in(4) => {
                let host = &mut self.hosts[at];
                (host.run, host.backup) = (None, None);
                host.ledger = Ledger::new(HolderId::of_key(&format!("{now} {at}")));
                let had = std::mem::take(&mut host.has);
                (0..N_CHUNKS).for_each(|chunk| self.losses[chunk] += u64::from(had[chunk]));
                self.saw("disk lost");
            }
            18 => self.hosts[at].backup = Some((self.hosts[at].ledger.clone(), self.hosts[at].has)),
            19 if self.random.is_one_in(3) => {
                let Some((ledger, has)) = self.hosts[at].backup.clone() else { return };
                let host = &mut self.hosts[at];
                let had = std::mem::replace(&mut host.has, has);
                (host.ledger, host.run) = (ledger, None);
                (0..N_CHUNKS).for_each(|chunk| self.losses[chunk] += u64::from(had[chunk] && !has[chunk]));
                self.saw("store set back to a backup");
            }
            20..=22 if self.hosts[at].is_liar => {
                let chunk = self.random.below(N_CHUNKS as u64) as usize;
                if std::mem::take(&mut self.hosts[at].has[chunk]) {
                    self.losses[chunk] += 1;
                    self.saw("liar threw a chunk away");
                }
            }
            _ => (),
        }
    }

    /// Stops promising some chunks.
    fn lapse(&mut self, at: usize) {
        let bits = self.random.next();
        let host = &mut self.hosts[at];
        if host.run.is_none() || self.without.lock {
            host.ledger.lapse((0..N_CHUNKS).filter(|n| bits >> n & 1 == 1).map(chunk));
        }
    }

    /// What `gdo sync` does: learn, get, renew, publish.
    fn synchronise(&mut self, at: usize) {
        if self.hosts[at].run.is_some() && !self.without.lock {
            return; // the lock is taken
        }
        self.learn(at);
        let now = self.now;
        for n in 0..N_CHUNKS {
            let is_there = (0..self.hosts.len()).any(|other| self.is_reached(at, other) && self.hosts[other].has[n]);
            if is_there && self.random.is_one_in(12) {
                self.hosts[at].has[n] = true;
            }
        }
        let keep_again = self.random.is_one_in(2).then(|| self.random.below(N_CHUNKS as u64) as usize);
        let period = self.terms.period;
        let host = &mut self.hosts[at];
        let has = host.has;
        host.ledger.retain_lapsing(|id| (0..N_CHUNKS).any(|n| chunk(n) == *id && has[n] && keep_again != Some(n)));
        host.ledger.renew(host.wall(now), period);
        host.ledger.generation += 1;
        let record = (host.ledger.generation, host.ledger.until());
        host.records.insert(host.ledger.holder, record);
        self.saw("promises renewed");
    }

    fn is_reached(&self, from: usize, to: usize) -> bool {
        from != to && !self.hosts[from].is_cut_off && !self.hosts[to].is_cut_off && self.now >= self.hosts[to].paused_until
    }

    /// Takes over newer records, also those that others have of this host.
    fn learn(&mut self, at: usize) {
        for other in 0..self.hosts.len() {
            if !self.is_reached(at, other) {
                continue;
            }
            for (id, record) in self.hosts[other].records.clone() {
                let known = self.hosts[at].records.entry(id).or_default();
                *known = (*known).max(record);
            }
        }
        let host = &mut self.hosts[at];
        if let Some((generation, until)) = host.records.get(&host.ledger.holder)
            && *generation > host.ledger.generation
        {
            host.ledger.catch_up(*generation, *until);
            self.saw("holder caught up with its own record");
        }
    }

    fn begin(&mut self, at: usize) {
        self.learn(at);
        let (now, terms) = (self.now, self.terms);
        let host = &self.hosts[at];
        let may_go =
            |n: &usize| host.has[*n] && (self.without.lapse || host.ledger.is_over(&chunk(*n), host.wall(now), terms.max_skew));
        let targets: Vec<usize> = (0..N_CHUNKS).filter(may_go).collect();
        if targets.is_empty() {
            return;
        }
        let chunks = targets.iter().map(|&n| (chunk(n), proof(n))).collect();
        let inquiry = Inquiry::new(host.ledger.holder, terms, host.moment(now), chunks);
        let mut to_ask: Vec<usize> = (0..self.hosts.len()).filter(|other| *other != at).collect();
        for i in (1..to_ask.len()).rev() {
            to_ask.swap(i, self.random.below(i as u64 + 1) as usize);
        }
        let losses = self.losses;
        self.hosts[at].run = Some(Run { inquiry, targets, to_ask, decided: None, stopped_until: 0, losses });
        self.saw("inquiries begun");
    }

    /// The next thing that a drop does: ask one, decide, remove.
    fn go_on(&mut self, at: usize) -> Result<(), String> {
        let Some(mut run) = self.hosts[at].run.take() else { return Ok(()) };
        if let Some(chunks) = run.decided.take() {
            return chunks.iter().try_for_each(|id| self.remove(at, id, &run.losses));
        }
        let moment = self.hosts[at].moment(self.now);
        if let Some(other) = run.to_ask.pop() {
            if self.is_reached(at, other) {
                let answer = self.answer(at, other, &run.targets);
                if run.inquiry.take(&answer, moment).is_err() {
                    self.saw("inquiry ended because clocks differ");
                    return Ok(());
                }
            }
        } else {
            match run.inquiry.verdict(moment) {
                Ok(chunks) if chunks.is_empty() => {
                    self.saw("inquiry found too few others");
                    return Ok(());
                }
                Ok(chunks) => {
                    run.decided = Some(chunks);
                    if self.random.is_one_in(8) {
                        run.stopped_until = self.now + self.random.below(30 * DAY);
                        self.saw("process stopped just before it removed");
                    }
                }
                Err(_) => {
                    self.saw("inquiry took too long, or a clock was set");
                    return Ok(());
                }
            }
        }
        self.hosts[at].run = Some(run);
        Ok(())
    }

    fn answer(&self, asker: usize, at: usize, targets: &[usize]) -> Answer {
        let host = &self.hosts[at];
        let promise = |&n: &usize| match host.has[n] {
            true if self.without.proof => (u64::MAX, proof(n)),
            true => (host.ledger.promise_of(&chunk(n)), proof(n)),
            false if self.without.copies => (u64::MAX, proof(n)),
            false => (0, [0; 32]),
        };
        let now = if self.without.proof { self.hosts[asker].wall(self.now) } else { host.wall(self.now) };
        Answer { holder: host.ledger.holder, now, promises: targets.iter().map(promise).collect() }
    }

    fn remove(&mut self, at: usize, id: &ChunkId, losses: &[u64; N_CHUNKS]) -> Result<(), String> {
        let n = (0..N_CHUNKS).find(|n| chunk(*n) == *id).expect("a chunk of this world");
        if !std::mem::take(&mut self.hosts[at].has[n]) {
            return Ok(());
        }
        self.saw("chunks removed");
        let others = self.hosts.iter().filter(|host| host.has[n]).count() as u64;
        let needed = (self.terms.copies as u64).saturating_sub(self.losses[n] - losses[n]);
        match others >= needed {
            true => Ok(()),
            false => Err(format!("chunk {n} was removed, and {others} others have it, where {needed} are needed")),
        }
    }
}
