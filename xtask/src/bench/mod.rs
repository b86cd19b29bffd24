//! `cargo xtask bench`: the program beside those that people use for the same.
//!
//! The tools take turns, so that a machine that becomes slower becomes so for all. Every operation that writes is followed by a `sync`
//! that counts as part of it: who leaves the writing to later gains nothing. The figures are medians.

mod growth;
mod net;
mod sets;
mod start;
mod tools;
mod topologies;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::command::{Context, Failure, Result, measured, repository, run, succeed, target_dir};
use crate::packages::Need;
use crate::{acceptance, ensure, fixtures, packages};
use sets::{Set, Sizes, Source};
use tools::{Over, TOOLS, Tool};

/// What is measured, in the order in which it is done.
const OPERATIONS: &[&str] = &[
    "first snapshot",
    "unchanged snapshot",
    "unchanged snapshot, cold cache",
    "status",
    "full restore",
    "full restore, cold cache",
    "restore of one file",
    "changed snapshot",
    "restore over the old version",
    "check of all data",
    "check of all data, again",
    "check of all data, cold cache",
    "check of all data, again, cold cache",
    "gc after forgetting",
    "maintenance",
];

/// For so long after inodes were freed, ext4 looks for others, one by one, when files are made: a minute, and five more where it did not write yet, in its
/// inode table, that they are free (`recently_deleted`).
const FREED: Duration = Duration::from_secs(365);

/// What an operation cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall: f64,
    cpu: f64,
    peak_rss: f64,
    stored: f64,
}

/// What was measured: for each operation, for each tool; `None` if it cannot do it.
type Costs = Vec<Vec<Option<Cost>>>;

struct Options {
    gdo: PathBuf,
    /// Where `lib/examples/floor.rs` is built.
    floor: PathBuf,
    scratch: PathBuf,
    sizes: Sizes,
    rounds: usize,
    /// How many of the operations are done.
    n_operations: usize,
    /// Words of the names of the data sets to measure, and of the tools; empty for all.
    sets: Vec<String>,
    tools: Vec<String>,
}

/// Runs `cargo xtask bench`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    match args.first().and_then(|first| first.to_str()) {
        Some("net") => return net::main(args.into_iter().skip(1).collect()),
        Some("start") => return start::main(args.into_iter().skip(1).collect()),
        Some("growth") => return growth::main(args.into_iter().skip(1).collect()),
        _ => {}
    }
    let mut options = Options {
        gdo: PathBuf::new(),
        floor: PathBuf::new(),
        scratch: target_dir().join("bench"),
        sizes: Sizes { media: 2 << 30, small_files: 200_000, image: 4 << 30 },
        rounds: 3,
        n_operations: OPERATIONS.len(),
        sets: Vec::new(),
        tools: Vec::new(),
    };
    let (mut write, mut gdo) = (None, None);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("'{}' needs a value", arg.display()));
        let word = |value: OsString| value.to_string_lossy().into_owned();
        match arg.to_str() {
            Some("--quick") => {
                (options.rounds, options.sizes) = (1, Sizes { media: 100 << 20, small_files: 5000, image: 1 << 30 });
            }
            Some("--write") => write = Some(repository().join("docs/performance.md")),
            Some("--only") => options.sets.push(word(value()?)),
            Some("--tool") => options.tools.push(word(value()?)),
            Some("--rounds") => options.rounds = word(value()?).parse().map_err(|_| "the rounds are a number")?,
            Some("--until") => options.n_operations = position(&word(value()?))? + 1,
            Some("--gdo") => gdo = Some(PathBuf::from(value()?)),
            Some("--scratch") => options.scratch = std::path::absolute(value()?)?,
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    ensure!(options.rounds > 0, "at least one round is needed");
    let needs: Vec<Need> = TOOLS.iter().filter_map(|tool| tool.need).filter(|(_, package)| !package.is_empty()).collect();
    packages::install(&[packages::TEST, &needs])?;
    ensure!(packages::is_root(), "the benchmark needs root: it restores owners and devices");
    options.gdo = acceptance::program(gdo)?;
    options.floor = build_floor()?;
    let is_meant_tool = |tool: &&Tool| is_meant_of(TOOLS.iter().map(|tool| tool.name), &options.tools, tool.name);
    let tools: Vec<&Tool> = TOOLS.iter().filter(is_meant_tool).filter(|tool| is_installed(tool)).collect();
    ensure!(
        tools.first().is_some_and(|tool| tool.name == TOOLS[0].name),
        "without '{}' there is nothing to compare",
        TOOLS[0].name
    );
    let all = sets::all(&options.sizes);
    let names: Vec<String> = all.iter().map(|set| set.name.clone()).collect();
    let mut sets: VecDeque<Set> =
        all.into_iter().filter(|set| is_meant_of(names.iter().map(String::as_str), &options.sets, &set.name)).collect();
    while let Some(set) = &sets.pop_front() {
        let source = Source::build(set, &options.sizes, &options.scratch)?;
        let mut section = String::new();
        // Written after each round: it takes hours, and who stops it has what was measured.
        let mut take = |n_rounds, costs: &Costs| {
            section = format!("{}\n{}", surroundings(&options, n_rounds, &tools)?, table(&tools, costs));
            let Some(path) = &write else { return Ok(()) };
            let page = std::fs::read_to_string(path).context(|| format!("cannot read '{}'", path.display()))?;
            std::fs::write(path, with_section(&page, &set.name, &section)).context(|| "cannot write the page")
        };
        measure_all(&options, &tools, set, &source, &mut take).context(|| format!("with {}", set.name))?;
        fixtures::remove(&options.scratch)?;
        println!("## {}\n\n{section}", set.name);
        if set.has_many_files && !sets.is_empty() {
            wait_for_inodes()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn build_floor() -> Result<PathBuf> {
    let build = ["build", "--release", "--package", "git-devops-lib", "--example", "floor"];
    succeed(Command::new("cargo").args(build).current_dir(repository()))?;
    Ok(target_dir().join("release/examples/floor"))
}

/// Returns the page with this section: in the place of the one with its title, or at the end.
fn with_section(page: &str, title: &str, text: &str) -> String {
    let mut sections: Vec<String> = page.split("\n## ").map(|section| section.trim_end().to_owned()).collect();
    let section = format!("{title}\n\n{}", text.trim_end());
    match sections.iter_mut().skip(1).find(|known| known.lines().next() == Some(title)) {
        Some(known) => *known = section,
        None => sections.push(section),
    }
    sections.join("\n\n## ") + "\n"
}

/// Returns where in the order of [`OPERATIONS`] one is.
fn position(operation: &str) -> Result<usize> {
    OPERATIONS
        .iter()
        .position(|known| *known == operation)
        .ok_or_else(|| Failure(format!("no operation '{operation}'; there are: {}", OPERATIONS.join(", "))))
}

/// Says whether one of `words` is in `name`, or there are none.
fn is_meant(words: &[String], name: &str) -> bool {
    words.is_empty() || words.iter().any(|word| name.contains(word))
}

/// The same where a word that is the whole name of one means no other.
fn is_meant_of<'a>(names: impl Iterator<Item = &'a str> + Clone, words: &[String], name: &str) -> bool {
    let is_one = |word: &str| names.clone().any(|known| known == word);
    words.is_empty() || words.iter().any(|word| if is_one(word) { name == word } else { name.contains(word) })
}

fn is_installed(tool: &Tool) -> bool {
    let Some((program, _)) = tool.need else { return true };
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().is_ok_and(|output| output.status.success())
}

/// Hands the medians of all rounds so far to `take`, with their number.
fn measure_all(
    options: &Options,
    tools: &[&Tool],
    set: &Set,
    source: &Source,
    take: &mut dyn FnMut(usize, &Costs) -> Result,
) -> Result {
    let mut all = vec![vec![Vec::new(); tools.len()]; OPERATIONS.len()];
    let mut n_kept = 0_u32;
    for round in 0..options.rounds {
        for at in 0..tools.len() {
            // Each round another tool begins.
            let at = (at + round) % tools.len();
            let costs = measure(tools[at], options, set, source).context(|| tools[at].name)?;
            for (operation, cost) in costs.into_iter().enumerate() {
                all[operation][at].extend(cost);
            }
            eprintln!("{}: round {} of {}: {} done", set.name, round + 1, options.rounds, tools[at].name);
        }
        let medians: Costs = all.iter().map(|tools| tools.iter().map(|costs| median(costs)).collect()).collect();
        take(round + 1, &medians)?;
        let trash = options.scratch.join(TRASH);
        n_kept += 1;
        // It takes long, and so does the wait: done only where there may be no room for what the next round leaves.
        if round + 1 < options.rounds && trash.exists() && free(&trash)? < 1.2 * allocated(&trash)? / f64::from(n_kept) {
            n_kept = 0;
            fixtures::remove(&trash)?;
            wait_for_inodes()?;
        }
    }
    Ok(())
}

/// Waits until files are made as ever, after many were removed.
fn wait_for_inodes() -> Result {
    succeed(&mut Command::new("sync"))?;
    std::thread::sleep(FREED);
    Ok(())
}

/// Lets one tool do its operations once, as far as it can.
fn measure(tool: &Tool, options: &Options, set: &Set, source: &Source) -> Result<Vec<Option<Cost>>> {
    let bench = Bench { tool, options, set, source };
    source.to_first()?;
    bench.clear(&["repository", "home", "out"])?;
    succeed(&mut bench.shell(tool.init))?;
    succeed(&mut Command::new("sync"))?;
    let mut costs: Vec<Option<Cost>> = Vec::new();
    for operation in &OPERATIONS[..options.n_operations] {
        let cost = match bench.done_already(operation) {
            Some(earlier) => costs[position(earlier)?],
            None => bench.operate(operation)?,
        };
        costs.push(cost);
    }
    bench.clear(&["repository", "out"])?;
    succeed(&mut Command::new("sync"))?;
    Ok(costs)
}

/// One tool on one tree.
struct Bench<'a> {
    tool: &'a Tool,
    options: &'a Options,
    set: &'a Set,
    source: &'a Source,
}

impl Bench<'_> {
    /// Returns the earlier operation that is this one, too: only ours checks in another way what was checked before.
    fn done_already(&self, operation: &str) -> Option<&'static str> {
        match operation {
            _ if !self.tool.check_again.is_empty() => None,
            "check of all data, again" => Some("check of all data"),
            "check of all data, again, cold cache" => Some("check of all data, cold cache"),
            _ => None,
        }
    }

    /// Does one operation after those before it, with what it needs to be prepared; `None` if the tool cannot do it.
    fn operate(&self, operation: &str) -> Result<Option<Cost>> {
        let tool = self.tool;
        match operation {
            "unchanged snapshot, cold cache" => self.with_cold_cache(|| self.time(tool.store)),
            "status" => self.time_reading(tool.status),
            "full restore" => {
                let cost = self.time(tool.restore)?;
                self.expect_all_restored()?;
                Ok(cost)
            }
            "full restore, cold cache" => {
                self.clear(&["out"])?;
                self.with_cold_cache(|| self.time(tool.restore))
            }
            "restore of one file" => {
                // What the programs need of the disk is read when they run, and the page cache was empty before.
                self.time_reading(tool.one_file)?;
                self.time_reading(tool.one_file)
            }
            "changed snapshot" => {
                self.source.to_second()?;
                if tool.store.is_empty() {
                    succeed(&mut self.shell(tool.init))?;
                }
                succeed(&mut Command::new("sync"))?;
                self.time(tool.store)
            }
            "restore over the old version" => self.restore_over(),
            "check of all data" => self.time_reading(tool.check),
            "check of all data, again" => self.time_reading(tool.check_again),
            "check of all data, cold cache" => self.with_cold_cache(|| self.time_reading(tool.check)),
            "check of all data, again, cold cache" => self.with_cold_cache(|| self.time_reading(tool.check_again)),
            "gc after forgetting" => self.time(tool.forget),
            "maintenance" => self.time(tool.maintain),
            _ => self.time(tool.store),
        }
    }

    fn restore_over(&self) -> Result<Option<Cost>> {
        let timed = match self.tool.restore_over {
            Over::Cannot => Ok(None),
            Over::AsEver => self.time(self.tool.restore),
            Over::By(script) => self.time(script),
        };
        match timed {
            // Some stumble over symlinks that are there, or over what is immutable.
            Err(Failure(error)) if self.tool.name != TOOLS[0].name => {
                eprintln!("{}: {} cannot restore over the old version: {error}", self.set.name, self.tool.name);
                Ok(None)
            }
            timed => timed,
        }
    }

    /// Runs a script and the sync that it owes; an empty one is what the tool cannot do.
    fn time(&self, script: &str) -> Result<Option<Cost>> {
        if script.is_empty() { Ok(None) } else { self.time_reading(&format!("{script}; sync")) }
    }

    /// Runs a script that writes nothing; an empty one is what the tool cannot do.
    fn time_reading(&self, script: &str) -> Result<Option<Cost>> {
        if script.is_empty() {
            return Ok(None);
        }
        let (outcome, usage) = measured(&self.shell(&format!("( {script} ) >/dev/null")), &self.options.scratch)?;
        let wall = outcome.exits(0)?.wall.as_secs_f64();
        Ok(Some(Cost { wall, cpu: usage.cpu, peak_rss: usage.peak_rss as f64, stored: allocated(&self.at("repository"))? }))
    }

    fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("set -euo pipefail; {script}")]).current_dir(&self.options.scratch);
        shell.env("SRC", &self.source.tree).env("REPO", self.at("repository")).env("OUT", self.at("out"));
        shell.env("CHANGED", self.source.changed()).env("FLOOR", &self.options.floor);
        shell.env("FILE", &self.source.one_file).env("GDO", &self.options.gdo).env("HOME", self.at("home"));
        shell.env("RESTIC_PASSWORD", "bench").env("RUSTIC_PASSWORD", "bench");
        shell.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_DEVOPS_STORE", "XDG_CACHE_HOME"] {
            shell.env_remove(variable);
        }
        shell
    }

    /// Measures with an empty page cache, and fills it again: what comes next reads nothing from the disk, nor the programs, of which ours begins git.
    fn with_cold_cache(&self, measure: impl FnOnce() -> Result<Option<Cost>>) -> Result<Option<Cost>> {
        succeed(&mut Command::new("sync"))?;
        std::fs::write("/proc/sys/vm/drop_caches", "3").context(|| "cannot empty the page cache")?;
        let cost = measure()?;
        let (version, program) = (self.tool.version, self.tool.need.map_or("git", |(program, _)| program));
        succeed(&mut self.shell(&format!(
            "( {version} ) >/dev/null; cat $GDO $(command -v git {program}) >/dev/null; \
             find $SRC $REPO -type f -print0 | xargs -0 -r cat >/dev/null"
        )))?;
        Ok(cost)
    }

    fn expect_all_restored(&self) -> Result {
        if self.tool.restore.is_empty() {
            return Ok(());
        }
        let count = |dir: &Path| -> Result<usize> {
            Ok(succeed(Command::new("find").arg(dir).args(["-type", "f", "-printf", "."]))?.stdout.len())
        };
        let (restored, expected) = (count(&self.at("out"))?, count(&self.source.tree)?);
        ensure!(restored == expected, "{restored} files were restored, expected {expected}");
        Ok(())
    }

    /// Makes directories empty. Thousands of files are only put aside: where inodes were just freed, ext4 takes several times as long to make new ones.
    fn clear(&self, names: &[&str]) -> Result {
        for name in names {
            let (dir, trash) = (self.at(name), self.at(TRASH));
            if self.set.has_many_files && dir.exists() {
                std::fs::create_dir_all(&trash)?;
                let n = std::fs::read_dir(&trash)?.count();
                std::fs::rename(&dir, trash.join(n.to_string()))?;
            }
            fixtures::remove(&dir)?;
            std::fs::create_dir_all(dir)?;
        }
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.options.scratch.join(name)
    }
}

/// Where in the scratch directory lies what is removed after a round, or after the last one.
const TRASH: &str = "trash";

/// Returns the bytes that are free on the disk of a directory.
fn free(dir: &Path) -> Result<f64> {
    let df = succeed(Command::new("df").args(["--output=avail", "--block-size=1"]).arg(dir))?.text();
    df.lines().nth(1).and_then(|line| line.trim().parse().ok()).ok_or_else(|| format!("cannot read '{df}'").into())
}

/// Returns the bytes that a directory takes on the disk.
fn allocated(dir: &Path) -> Result<f64> {
    let du = succeed(Command::new("du").args(["-s", "--block-size=1"]).arg(dir))?.text();
    du.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or_else(|| format!("cannot read '{du}'").into())
}

/// Returns the median of each figure on its own.
fn median(costs: &[Cost]) -> Option<Cost> {
    let middle = |figure: fn(&Cost) -> f64| {
        let mut figures: Vec<f64> = costs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied()
    };
    Some(Cost {
        wall: middle(|cost| cost.wall)?,
        cpu: middle(|cost| cost.cpu)?,
        peak_rss: middle(|cost| cost.peak_rss)?,
        stored: middle(|cost| cost.stored)?,
    })
}

fn table(tools: &[&Tool], costs: &[Vec<Option<Cost>>]) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mut table = String::from(
        "| operation | tool | wall s | ours/theirs | CPU s | ours/theirs | peak MiB | ours/theirs | stored MiB | ours/theirs |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (operation, costs) in OPERATIONS.iter().zip(costs) {
        let Some(ours) = costs[0] else { continue };
        for (tool, theirs) in tools.iter().zip(costs) {
            let Some(theirs) = theirs else { continue };
            let pair = |figure: fn(&Cost) -> f64, unit: f64, digits: usize| {
                let shown = format!("{:.digits$}", figure(theirs) / unit);
                // Of what is shown as nothing there is no ratio.
                let is_nothing = shown.chars().all(|c| matches!(c, '0' | '.'));
                let ratio = if is_nothing { String::new() } else { format!("{:.2}", figure(&ours) / figure(theirs)) };
                format!("{shown} | {ratio}")
            };
            let cells = [
                // Some of what is wanted is milliseconds.
                pair(|cost| cost.wall, 1.0, if theirs.wall < 0.1 { 3 } else { 2 }),
                pair(|cost| cost.cpu, 1.0, 2),
                pair(|cost| cost.peak_rss, MIB, 0),
                pair(|cost| cost.stored, MIB, 1),
            ];
            writeln!(table, "| {operation} | {} | {} |", tool.name, cells.join(" | "))
                .expect("BUG: writing to a string cannot fail");
        }
    }
    table
}

/// Returns what a reader must know about where the figures come from.
fn surroundings(options: &Options, n_rounds: usize, tools: &[&Tool]) -> Result<String> {
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
    line("rounds, of which the median", n_rounds.to_string());
    line("peak", "of the largest process".to_owned());
    for tool in tools {
        line(tool.name, first_line(tool.version)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_of_the_page_is_replaced_or_added() {
        let page = "# Performance\n\nHow.\n\n## one\n\nold\n\n## two\n\nstays\n";
        assert_eq!(with_section(page, "one", "new\n"), "# Performance\n\nHow.\n\n## one\n\nnew\n\n## two\n\nstays\n");
        assert!(with_section(page, "three", "3").ends_with("## two\n\nstays\n\n## three\n\n3\n"));
    }

    #[test]
    fn the_median_is_taken_of_each_figure() {
        let cost = |wall, cpu| Cost { wall, cpu, ..Cost::default() };
        let middle = median(&[cost(1.0, 9.0), cost(5.0, 1.0), cost(3.0, 2.0)]);
        let middle = middle.unwrap();
        assert_eq!((middle.wall, middle.cpu), (3.0, 2.0));
        assert!(median(&[]).is_none(), "what was never done has no cost");
    }

    #[test]
    fn a_ratio_below_one_means_that_we_need_less() {
        let cost = |wall| Some(Cost { wall, cpu: 1.0, peak_rss: 1.0, stored: 1.0 });
        let table = table(&[&TOOLS[0], &TOOLS[2], &TOOLS[3]], &[vec![cost(2.0), cost(4.0), None]]);
        assert!(!table.contains("borg"), "{table}");
        assert!(table.contains("| first snapshot | restic | 4.00 | 0.50 | 1.00 | 1.00 |"), "{table}");
    }

    #[test]
    fn of_nothing_there_is_no_ratio() {
        let cost = |cpu| Some(Cost { wall: 1.0, cpu, peak_rss: 1.0, stored: 1.0 });
        let table = table(&[&TOOLS[0], &TOOLS[2]], &[vec![cost(2.0), cost(0.004)]]);
        assert!(table.contains("| restic | 1.00 | 1.00 | 0.00 |  | 0 |"), "{table}");
    }
}
