//! `cargo xtask bench`: the program beside those that people use for the same.
//!
//! The tools take turns, so that a machine that becomes slower becomes so for all. Every operation is followed by a `sync`
//! that counts as part of it: who leaves the writing to later gains nothing. The figures are medians.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::command::{Context, Failure, Result, measured, repository, run, succeed, target_dir};
use crate::{acceptance, ensure, fixtures, packages};

/// A program, as shell scripts on `$SRC` (the tree), `$REPO` (an empty directory of its own) and `$OUT` (an empty directory).
struct Tool {
    name: &'static str,
    version: &'static str,
    init: &'static str,
    store: &'static str,
    restore: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool {
        name: "gdo",
        version: "$GDO --version",
        init: "$GDO --git-dir $REPO/git --work-tree $SRC --store $REPO/store init",
        store: "cd $SRC; $GDO --git-dir $REPO/git --work-tree $SRC --store $REPO/store snapshot -m bench .",
        restore: "$GDO --git-dir $REPO/git --work-tree $SRC --store $REPO/store restore --target $OUT",
    },
    Tool {
        name: "restic",
        version: "restic version",
        init: "restic -q -r $REPO/restic init",
        store: "cd $SRC; restic -q -r $REPO/restic backup .",
        restore: "restic -q -r $REPO/restic restore latest --target $OUT",
    },
    Tool {
        name: "borg",
        version: "borg --version",
        init: "borg init --encryption none $REPO/borg",
        store: "cd $SRC; borg create $REPO/borg::{now:%s%f} .",
        restore: "cd $OUT; borg extract $REPO/borg::$(borg list --last 1 --short $REPO/borg)",
    },
    Tool {
        name: "tar, zstd -1",
        version: "zstd --version | grep -o 'v[0-9.]*'",
        init: "true",
        store: "tar -C $SRC --xattrs '--xattrs-include=*' --acls -cf - . | zstd -1 -q -f -o $REPO/tree.tar.zst",
        restore: "zstd -q -dc $REPO/tree.tar.zst | tar -C $OUT --xattrs '--xattrs-include=*' --acls -xpf -",
    },
    Tool {
        name: "cp -a",
        version: "cp --version | head -n 1",
        init: "true",
        store: "cp -a $SRC $(mktemp -u $REPO/copy-XXXXXXXX)",
        restore: "cp -a $(ls -d $REPO/copy-* | head -n 1)/. $OUT",
    },
];

const OPERATIONS: &[&str] = &["first snapshot", "unchanged snapshot", "restore"];

/// What an operation cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall: f64,
    cpu: f64,
    peak_rss: f64,
    stored: f64,
}

struct Options {
    gdo: PathBuf,
    scratch: PathBuf,
    media: u64,
    small_files: usize,
    rounds: usize,
    /// A word of the names of the data sets to measure.
    only: Option<String>,
}

/// Runs `cargo xtask bench`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let (mut quick, mut write, mut only, mut media, mut gdo, mut scratch) = (false, false, None, None, None, None);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = |what: &str| args.next().ok_or(format!("{what} is missing"));
        match arg.to_str() {
            Some("--quick") => quick = true,
            Some("--write") => write = true,
            Some("--only") => only = Some(value("a word of the data set's name")?.to_string_lossy().into_owned()),
            Some("--media") => {
                media = Some(value("the number of bytes")?.to_string_lossy().parse().map_err(|_| "bytes are a number")?)
            }
            Some("--gdo") => gdo = Some(PathBuf::from(value("the program")?)),
            Some("--scratch") => scratch = Some(PathBuf::from(value("the directory")?)),
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    packages::install(&[packages::TEST, packages::BENCH])?;
    ensure!(packages::is_root(), "the benchmark needs root: it restores owners and devices");
    let gdo = match gdo {
        Some(gdo) => std::fs::canonicalize(gdo)?,
        None => acceptance::build()?,
    };
    let options = Options {
        gdo,
        scratch: std::path::absolute(scratch.unwrap_or_else(|| target_dir().join("bench")))?,
        media: media.unwrap_or(if quick { 100 << 20 } else { 2 << 30 }),
        small_files: if quick { 5000 } else { 200_000 },
        rounds: if quick { 1 } else { 3 },
        only,
    };
    ensure!(!write || (!quick && options.only.is_none()), "only a whole measurement is worth writing down");
    let page = page(&options)?;
    print!("{page}");
    if write {
        std::fs::write(repository().join("docs/performance.md"), page).context(|| "cannot write 'docs/performance.md'")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures everything and returns the page that says so.
fn page(options: &Options) -> Result<String> {
    let mut page = String::from(
        "# Performance\n\nMade by `cargo xtask bench --write`. The tools take turns; every operation includes a `sync`; the source lies in the\n\
         page cache. Ratios are ours divided by theirs: below 1 we need less.\n\n",
    );
    writeln!(page, "{}", surroundings(options)?).expect("BUG: writing to a string cannot fail");
    type Build<'a> = Box<dyn Fn(&Path) -> Result + 'a>;
    let sets: [(String, Build); 3] = [
        ("Debian root".into(), Box::new(fixtures::debian_root)),
        (
            format!("media, {} MiB that nothing compresses", options.media >> 20),
            Box::new(|dir| fixtures::media(dir, options.media)),
        ),
        (format!("{} small files", options.small_files), Box::new(|dir| fixtures::many_files(dir, options.small_files))),
    ];
    for (name, build) in sets.into_iter().filter(|(name, _)| options.only.as_ref().is_none_or(|only| name.contains(only))) {
        let source = options.scratch.join("source");
        fixtures::remove(&source)?;
        std::fs::create_dir_all(&source)?;
        build(&source)?;
        succeed(Command::new("tar").args(["-cf", "/dev/null", "."]).current_dir(&source))?;
        let costs = measure_all(options, &source).context(|| format!("with {name}"))?;
        page.push_str(&table(&name, &costs));
        fixtures::remove(&options.scratch)?;
    }
    Ok(page)
}

/// Returns the medians: for each operation, for each tool.
fn measure_all(options: &Options, source: &Path) -> Result<Vec<Vec<Cost>>> {
    let mut all = vec![vec![Vec::new(); TOOLS.len()]; OPERATIONS.len()];
    for round in 0..options.rounds {
        for at in 0..TOOLS.len() {
            // Each round another tool begins.
            let at = (at + round) % TOOLS.len();
            let costs = measure(&TOOLS[at], options, source).context(|| TOOLS[at].name)?;
            for (operation, cost) in costs.into_iter().enumerate() {
                all[operation][at].push(cost);
            }
            eprintln!("round {} of {}: {} done", round + 1, options.rounds, TOOLS[at].name);
        }
    }
    Ok(all.into_iter().map(|tools| tools.into_iter().map(median).collect()).collect())
}

/// Lets one tool do its three operations once.
fn measure(tool: &Tool, options: &Options, source: &Path) -> Result<[Cost; 3]> {
    let at = |name: &str| options.scratch.join(name);
    for name in ["repository", "out", "home"] {
        fixtures::remove(&at(name))?;
        std::fs::create_dir_all(at(name))?;
    }
    let shell = |script: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("set -euo pipefail; {script}")]).current_dir(&options.scratch);
        shell.env("SRC", source).env("REPO", at("repository")).env("OUT", at("out")).env("GDO", &options.gdo);
        shell.env("HOME", at("home")).env("RESTIC_PASSWORD", "bench").env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_DEVOPS_STORE", "XDG_CACHE_HOME"] {
            shell.env_remove(variable);
        }
        shell
    };
    succeed(&mut shell(tool.init))?;
    succeed(&mut Command::new("sync"))?;
    let mut costs = [Cost::default(); 3];
    for (cost, script) in costs.iter_mut().zip([tool.store, tool.store, tool.restore]) {
        let (outcome, usage) = measured(&shell(&format!("( {script} ) >/dev/null; sync")), &options.scratch)?;
        let wall = outcome.exits(0)?.wall.as_secs_f64();
        *cost = Cost { wall, cpu: usage.cpu, peak_rss: usage.peak_rss as f64, stored: allocated(&at("repository"))? };
    }
    let restored = succeed(Command::new("find").arg(at("out")).args(["-type", "f", "-printf", "."]))?.stdout.len();
    let expected = succeed(Command::new("find").arg(source).args(["-type", "f", "-printf", "."]))?.stdout.len();
    ensure!(restored == expected, "{restored} files were restored, expected {expected}");
    for name in ["repository", "out"] {
        fixtures::remove(&at(name))?;
    }
    succeed(&mut Command::new("sync"))?;
    Ok(costs)
}

/// Returns the bytes that a directory takes on the disk.
fn allocated(dir: &Path) -> Result<f64> {
    let du = succeed(Command::new("du").args(["-s", "--block-size=1"]).arg(dir))?.text();
    du.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or_else(|| format!("cannot read '{du}'").into())
}

/// Returns the median of each figure on its own.
fn median(costs: Vec<Cost>) -> Cost {
    let middle = |figure: fn(&Cost) -> f64| {
        let mut figures: Vec<f64> = costs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Cost {
        wall: middle(|cost| cost.wall),
        cpu: middle(|cost| cost.cpu),
        peak_rss: middle(|cost| cost.peak_rss),
        stored: middle(|cost| cost.stored),
    }
}

fn table(name: &str, costs: &[Vec<Cost>]) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mut table = format!(
        "## {name}\n\n| operation | tool | wall s | ours/theirs | CPU s | ours/theirs | peak MiB | ours/theirs | stored MiB | ours/theirs |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for (operation, tools) in OPERATIONS.iter().zip(costs) {
        let ours = tools[0];
        for (tool, theirs) in TOOLS.iter().zip(tools) {
            let pair = |figure: fn(&Cost) -> f64, unit: f64, digits: usize| {
                format!("{:.digits$} | {:.2}", figure(theirs) / unit, figure(&ours) / figure(theirs).max(f64::MIN_POSITIVE))
            };
            let cells = [
                pair(|cost| cost.wall, 1.0, 2),
                pair(|cost| cost.cpu, 1.0, 2),
                pair(|cost| cost.peak_rss, MIB, 0),
                pair(|cost| cost.stored, MIB, 1),
            ];
            writeln!(table, "| {operation} | {} | {} |", tool.name, cells.join(" | "))
                .expect("BUG: writing to a string cannot fail");
        }
    }
    table + "\n"
}

/// Returns what a reader must know about where the figures come from.
fn surroundings(options: &Options) -> Result<String> {
    let first_line = |script: &str| -> Result<String> {
        let outcome = run(Command::new("sh").args(["-c", script]).env("GDO", &options.gdo).current_dir(repository()))?;
        Ok(outcome.text().lines().next().unwrap_or("unknown").trim().to_owned())
    };
    std::fs::create_dir_all(&options.scratch)?;
    let scratch = options.scratch.display();
    let mut text = String::new();
    let mut line = |what: &str, value: String| writeln!(text, "- {what}: {value}").expect("BUG: writing to a string cannot fail");
    line("date", first_line("date -u +%F")?);
    line("commit", first_line("git rev-parse --short HEAD")?);
    line("processor", first_line("n=$(nproc); sed -n \"s/^model name.*: \\(.*\\)/$n x \\1/p\" /proc/cpuinfo")?);
    line("memory", first_line("sed -n 's/^MemTotal: *//p' /proc/meminfo")?);
    line("kernel", first_line("uname -sr")?);
    line("file system", first_line(&format!("stat -f -c %T '{scratch}'"))?);
    line("rounds, of which the median", options.rounds.to_string());
    for tool in TOOLS {
        line(tool.name, first_line(tool.version)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_taken_of_each_figure() {
        let cost = |wall, cpu| Cost { wall, cpu, ..Cost::default() };
        let middle = median(vec![cost(1.0, 9.0), cost(5.0, 1.0), cost(3.0, 2.0)]);
        assert_eq!((middle.wall, middle.cpu), (3.0, 2.0));
    }

    #[test]
    fn a_ratio_below_one_means_that_we_need_less() {
        let cost = |wall| Cost { wall, cpu: 1.0, peak_rss: 1.0, stored: 1.0 };
        let table = table("x", &[vec![cost(2.0), cost(4.0), cost(1.0), cost(1.0), cost(1.0)]]);
        assert!(table.contains("| first snapshot | restic | 4.00 | 0.50 | 1.00 | 1.00 |"), "{table}");
    }
}
