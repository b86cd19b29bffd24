//! `cargo xtask bench growth`: how cost grows with files, bytes, chunks in the store and commits in the history.
//!
//! Each size is measured beside the others in one run. What is judged is processor time, which a busy machine changes least.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use super::with_section;
use crate::command::{Context, Failure, Result, measured, repository, run, succeed, target_dir};
use crate::{acceptance, ensure, fixtures, packages};

struct Options {
    gdo: PathBuf,
    scratch: PathBuf,
    /// One out of so many is done of each size.
    thin: usize,
    /// The sizes that take long are done, too.
    is_full: bool,
}

/// How the cost of an operation may grow with the size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// As the size does.
    Linear,
    /// Not at all.
    Flat,
}

use Growth::{Flat, Linear};

/// Cost of one operation at one size.
struct Cost {
    wall: f64,
    cpu: f64,
    peak_mib: f64,
}

/// Measures all operations at one size.
type Run = fn(&Place<'_>, usize) -> Result<Vec<Cost>>;

/// What is measured, what has the size, the sizes, one that takes long, and how all of it is done.
struct Scene {
    title: &'static str,
    unit: &'static str,
    sizes: [usize; 4],
    largest: Option<usize>,
    /// Each with how it may grow, and the MiB that it may have.
    operations: &'static [(&'static str, Growth, f64)],
    run: Run,
}

const SCENES: &[Scene] = &[
    Scene {
        title: "Growth with the number of files",
        unit: "files",
        sizes: [25_000, 50_000, 100_000, 200_000],
        largest: Some(1_000_000),
        operations: &[
            ("first snapshot", Linear, OURS),
            ("unchanged snapshot", Linear, OURS),
            ("status", Linear, OURS),
            ("full restore", Linear, OURS),
            ("check --data", Linear, OURS),
            ("cat", Flat, OURS),
            ("gc", Linear, 512.0),
            ("maintain", Linear, OURS),
        ],
        run: files,
    },
    Scene {
        title: "Growth with the bytes of large files",
        unit: "MiB",
        sizes: [256, 512, 1024, 2048],
        largest: None,
        operations: &[
            ("first snapshot", Linear, OURS),
            ("check --data", Linear, OURS),
            ("full restore", Linear, OURS),
            ("status", Flat, OURS),
        ],
        run: bytes,
    },
    Scene {
        title: "Growth with the chunks in the store",
        unit: "chunks",
        sizes: [500_000, 1_000_000, 2_000_000, 4_000_000],
        largest: Some(20_000_000),
        operations: &[
            ("snapshot of a new file of 16 MiB", Flat, OURS),
            ("unchanged snapshot", Flat, OURS),
            ("cat of a small file", Flat, OURS),
            ("gc -n", Linear, OURS),
        ],
        run: chunks,
    },
    Scene {
        title: "Growth with the commits in the history",
        unit: "commits",
        sizes: [250, 500, 1000, 2000],
        largest: None,
        operations: &[
            ("snapshot of one change", Flat, OURS),
            ("status", Flat, OURS),
            ("log -n 1", Flat, OURS),
            ("cat of the first version", Flat, OURS),
        ],
        run: commits,
    },
];

/// Runs `cargo xtask bench growth`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let mut options = Options { gdo: PathBuf::new(), scratch: target_dir().join("bench-growth"), thin: 1, is_full: false };
    let (mut write, mut gdo, mut only) = (None, None, Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("'{}' needs a value", arg.display()));
        match arg.to_str() {
            Some("--quick") => options.thin = 25,
            Some("--full") => options.is_full = true,
            Some("--write") => write = Some(repository().join("docs/performance.md")),
            Some("--only") => only.push(value()?.to_string_lossy().into_owned()),
            Some("--gdo") => gdo = Some(PathBuf::from(value()?)),
            Some("--scratch") => options.scratch = std::path::absolute(value()?)?,
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    packages::install(&[packages::TEST])?;
    options.gdo = acceptance::program(gdo)?;
    let mut too_fast = Vec::new();
    for scene in SCENES.iter().filter(|scene| super::is_meant(&only, scene.title)) {
        let section = measure(&options, scene, &mut too_fast).context(|| scene.title)?;
        println!("## {}\n\n{section}", scene.title);
        if let Some(path) = &write {
            let page = fs::read_to_string(path).context(|| format!("cannot read '{}'", path.display()))?;
            fs::write(path, with_section(&page, scene.title, &section)).context(|| "cannot write the page")?;
        }
    }
    fixtures::remove(&options.scratch)?;
    too_fast.iter().for_each(|line| eprintln!("GROWS TOO FAST: {line}"));
    Ok(ExitCode::from(u8::from(!too_fast.is_empty())))
}

fn measure(options: &Options, scene: &Scene, too_fast: &mut Vec<String>) -> Result<String> {
    let mut sizes: Vec<usize> = scene.sizes.iter().map(|size| size / options.thin).collect();
    sizes.extend(scene.largest.filter(|_| options.is_full).map(|size| size / options.thin));
    let mut rows: Vec<(usize, Vec<Cost>)> = Vec::new();
    for size in sizes {
        let place = Place::new(options, &format!("{}-{size}", scene.unit))?;
        rows.push((size, (scene.run)(&place, size)?));
        eprintln!("{}: {size} {} done", scene.title, scene.unit);
    }
    let mut text = surroundings(options)?;
    writeln!(
        text,
        "\n| {} | {} |",
        scene.unit,
        scene.operations.iter().map(|(name, ..)| format!("{name}: CPU s, wall s, peak MiB")).collect::<Vec<_>>().join(" | ")
    )
    .expect(STRING);
    writeln!(text, "|--:|{}", "--:|".repeat(scene.operations.len())).expect(STRING);
    for (size, costs) in &rows {
        let cell = |Cost { wall, cpu, peak_mib }: &Cost| format!("{cpu:.2}, {wall:.2}, {peak_mib:.0}");
        writeln!(text, "| {size} | {} |", costs.iter().map(cell).collect::<Vec<_>>().join(" | ")).expect(STRING);
    }
    let (unit, title, first) = (scene.unit, scene.title, &rows[0]);
    // The one that takes long is judged, too.
    for last in &rows[scene.sizes.len() - 1..] {
        for (at, (name, growth, max_mib)) in scene.operations.iter().enumerate() {
            let (small, large) = (&first.1[at], &last.1[at]);
            if is_too_fast(*growth, last.0 as f64 / first.0 as f64, small.cpu, large.cpu) {
                too_fast
                    .push(format!("{title}: {name}: {:.2} s at {} {unit}, {:.2} s at {}", small.cpu, first.0, large.cpu, last.0));
            }
            if large.peak_mib > *max_mib {
                too_fast.push(format!("{title}: {name}: {:.0} MiB at {} {unit}", large.peak_mib, last.0));
            }
        }
    }
    Ok(text)
}

/// So many MiB may a process have, whatever the size. Git, which collects, takes more for a million files.
const OURS: f64 = 256.0;

/// Says whether the cost of something `factor` times as large is more than it may be; what GNU time rounds, and a bad moment, are excused.
fn is_too_fast(growth: Growth, factor: f64, small: f64, large: f64) -> bool {
    const ROUNDED: f64 = 0.05;
    match growth {
        Linear => large > 1.3 * factor * small + ROUNDED,
        Flat => large > 1.5 * small + ROUNDED,
    }
}

/// A directory under control that is measured. It stays until all is done: where inodes were just freed, ext4 takes long to make new ones.
struct Place<'a> {
    options: &'a Options,
    dir: PathBuf,
}

impl<'a> Place<'a> {
    fn new(options: &'a Options, name: &str) -> Result<Self> {
        let place = Self { options, dir: options.scratch.join(name) };
        fixtures::remove(&place.dir)?;
        fs::create_dir_all(place.tree())?;
        succeed(&mut place.gdo(&["init", "--quiet"]))?;
        Ok(place)
    }

    fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    fn gdo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.options.gdo);
        command.args(args).current_dir(self.tree());
        for (name, value) in
            [("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_COMMITTER_NAME", "a"), ("GIT_COMMITTER_EMAIL", "a@b")]
        {
            command.env(name, value);
        }
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_DEVOPS_STORE"] {
            command.env_remove(variable);
        }
        command
    }

    fn does(&self, args: &[&str]) -> Result {
        succeed(&mut self.gdo(args)).map(drop)
    }

    /// Measures a run that ends with 0.
    fn time(&self, args: &[&str]) -> Result<Cost> {
        let (outcome, usage) = measured(&self.gdo(args), &self.options.scratch)?;
        ensure!(outcome.code == 0, "'{}' ends with {}: {}", outcome.line, outcome.code, outcome.tail(3));
        Ok(Cost { wall: outcome.wall.as_secs_f64(), cpu: usage.cpu, peak_mib: usage.peak_rss as f64 / f64::from(1 << 20) })
    }

    fn snapshot(&self) -> Result<Cost> {
        self.time(&["snapshot", "--quiet", "-m", "growth", "."])
    }

    /// Lets a file that was written in the moment of the last snapshot be looked at once more, so that its time counts from now on.
    fn settle(&self) -> Result {
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.does(&["snapshot", "--quiet", "-m", "growth", "."])
    }

    /// Restores all of it beside the tree.
    fn restore(&self) -> Result<Cost> {
        self.time(&["restore", "--quiet", "--target", "../out"])
    }
}

fn files(place: &Place<'_>, n: usize) -> Result<Vec<Cost>> {
    fs::write(place.tree().join("one"), "a small file\n")?;
    fixtures::many_files(&place.tree(), n)?;
    let first = place.snapshot()?;
    place.settle()?;
    let (unchanged, status) = (place.snapshot()?, place.time(&["status"])?);
    let (restored, checked) = (place.restore()?, place.time(&["check", "--data"])?);
    let one = place.time(&["cat", "HEAD:one"])?;
    Ok(vec![first, unchanged, status, restored, checked, one, place.time(&["gc"])?, place.time(&["maintain"])?])
}

fn bytes(place: &Place<'_>, mib: usize) -> Result<Vec<Cost>> {
    fixtures::media(&place.tree(), (mib as u64) << 20)?;
    let first = place.snapshot()?;
    place.settle()?;
    Ok(vec![first, place.time(&["check", "--data"])?, place.restore()?, place.time(&["status"])?])
}

/// So many bytes a chunk has.
const CHUNK: usize = 64;

fn chunks(place: &Place<'_>, n: usize) -> Result<Vec<Cost>> {
    place.does(&["attributes", "*.small", &format!("chunker=fixed:size={CHUNK}")])?;
    let mut seeded = fixtures::Seeded::new(7);
    fs::write(place.tree().join("small.txt"), "a small file\n")?;
    write_noise(&place.tree().join("all.small"), n * CHUNK, &mut seeded)?;
    place.does(&["snapshot", "--quiet", "-m", "all chunks", "."])?;
    place.settle()?;
    write_noise(&place.tree().join("new.bin"), 16 << 20, &mut seeded)?;
    let new = place.snapshot()?;
    place.settle()?;
    Ok(vec![new, place.snapshot()?, place.time(&["cat", "HEAD:small.txt"])?, place.time(&["gc", "-n"])?])
}

fn write_noise(path: &Path, len: usize, seeded: &mut fixtures::Seeded) -> Result {
    use std::io::Write as _;
    let mut file = fs::File::create(path)?;
    let mut left = len;
    while left > 0 {
        let part = left.min(1 << 20);
        file.write_all(&seeded.bytes(part))?;
        left -= part;
    }
    Ok(())
}

fn commits(place: &Place<'_>, n: usize) -> Result<Vec<Cost>> {
    fixtures::many_files(&place.tree(), 500)?;
    let changed = place.tree().join("changed");
    for at in 0..n {
        fs::write(&changed, format!("{at}\n"))?;
        place.does(&["snapshot", "--quiet", "-m", "one of many", "."])?;
    }
    fs::write(&changed, "the last one\n")?;
    let first = format!("HEAD~{n}:changed");
    Ok(vec![place.snapshot()?, place.time(&["status"])?, place.time(&["log", "-n", "1"])?, place.time(&["cat", &first])?])
}

fn surroundings(options: &Options) -> Result<String> {
    let said = |program: &str, args: &[&str]| -> Result<String> {
        Ok(run(Command::new(program).args(args).current_dir(repository()))?.text().trim().to_owned())
    };
    fs::create_dir_all(&options.scratch)?;
    let (date, commit) = (said("date", &["-u", "+%F"])?, said("git", &["rev-parse", "--short", "HEAD"])?);
    let scratch = options.scratch.to_string_lossy().into_owned();
    let place = said("stat", &["-f", "-c", "%T", &scratch])?;
    Ok(format!("{date}, commit {commit}, on {place}, {} processors; the machine may have had other work.\n", said("nproc", &[])?))
}

const STRING: &str = "BUG: writing to a string cannot fail";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_faster_than_it_may_is_told() {
        assert!(!is_too_fast(Linear, 8.0, 1.0, 10.0) && is_too_fast(Linear, 8.0, 1.0, 10.6));
        assert!(!is_too_fast(Flat, 8.0, 1.0, 1.5) && is_too_fast(Flat, 8.0, 1.0, 1.6));
        assert!(!is_too_fast(Flat, 8.0, 0.0, 0.05), "what the clock cannot tell apart");
    }
}
