//! `gdo tour`

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use git_devops::error::{Context, Error, Kind, Result};
use serde_json::Value;

use crate::ui::{Ui, bytes, shown};

/// Show what this does: two hosts, one stored and one brought up from it, in a scratch directory, in a minute
///
/// Copies a real tree into a scratch directory, stores it as host 'alpha', restores it as host 'beta', stores that as well and compares: if even one
/// bit of content or metadata differed, the trees of both would have different names. Then removes all of it again.
#[derive(clap::Args)]
pub struct TourArgs {
    /// The tree to take [default: this machine's /etc and /usr/share/doc, and a disk image]
    path: Option<PathBuf>,
    /// Where to work; made, and removed at the end
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Leave the scratch directory for a look around
    #[arg(long)]
    keep: bool,
}

/// Length of the disk image that the tour makes, and of the data in it, in bytes.
const IMAGE_LEN: u64 = 512 << 20;
const IMAGE_DATA: u64 = 64 << 20;

pub fn run(ui: &mut Ui, args: &TourArgs) -> Result<()> {
    let scratch = match &args.scratch {
        Some(scratch) => std::path::absolute(scratch)?,
        None => std::env::temp_dir().join(format!("gdo-tour-{}", std::process::id())),
    };
    std::fs::create_dir(&scratch).context(|| format!("cannot make the scratch directory '{}'", scratch.display()))?;
    let mut tour = Tour { ui, scratch: scratch.clone(), program: std::env::current_exe()?, times: Vec::new() };
    let result = tour.walk(args);
    if args.keep {
        tour.ui.note(format_args!("\nkept: {}", scratch.display()))?;
    } else {
        std::fs::remove_dir_all(&scratch).context(|| format!("cannot remove '{}'", scratch.display()))?;
    }
    result
}

struct Tour<'a> {
    ui: &'a mut Ui,
    scratch: PathBuf,
    program: PathBuf,
    times: Vec<(&'static str, Duration)>,
}

/// A host of the tour: a tree, and its repository beside it.
struct Host {
    tree: PathBuf,
    repo: PathBuf,
}

impl Tour<'_> {
    fn walk(&mut self, args: &TourArgs) -> Result<()> {
        let (alpha, beta) = (self.host("alpha")?, self.host("beta")?);
        self.say("a real tree, copied for host 'alpha'")?;
        let image = self.timed("copy the tree", |tour| tour.make_tree(args, &alpha.tree))?;

        self.say("alpha: put it under control and store it")?;
        self.gdo(&alpha, &["init"])?;
        let first = self.timed("first snapshot", |tour| tour.gdo(&alpha, &["snapshot", "-m", "as it was found", "."]))?;
        self.print_snapshot(&first)?;

        self.say("alpha: again, with nothing changed")?;
        let again = self.timed("second snapshot, unchanged", |tour| tour.gdo(&alpha, &["snapshot"]))?;
        self.print_snapshot(&again)?;

        if let Some(image) = &image {
            self.say("alpha: 4 KiB changed in the middle of the disk image")?;
            change_image(image)?;
            let changed = self.timed("snapshot after the change", |tour| tour.gdo(&alpha, &["snapshot", "-m", "a change"]))?;
            self.print_snapshot(&changed)?;
        }

        self.say("beta: bring a second host up from it")?;
        let target = beta.tree.display().to_string();
        let restored = self.timed("restore", |tour| tour.gdo(&alpha, &["restore", "--target", &target]))?;
        let (n, written) = (number(&restored, "files_seen"), number(&restored, "bytes_written"));
        self.ui.note(format_args!("    {n} files and directories, {} written", bytes(written)))?;

        self.say("beta: store it, in a repository of its own that shares alpha's chunk store")?;
        let store = alpha.repo.join("devops/store").display().to_string();
        self.gdo(&beta, &["--store", &store, "init"])?;
        let second =
            self.timed("snapshot of beta", |tour| tour.gdo(&beta, &["--store", &store, "snapshot", "-m", "as it came up", "."]))?;
        self.print_snapshot(&second)?;

        self.say("proof that both are alike: content, owners, modes, times to the nanosecond, links, holes, attributes")?;
        let (a, b) = (self.tree_id(&alpha)?, self.tree_id(&beta)?);
        self.ui.note(format_args!("    alpha {a}\n    beta  {b}"))?;
        if a != b {
            return Err(Error::new(Kind::Bug, "the two hosts differ; look at them with 'gdo tour --keep' and 'gdo diff'"));
        }
        self.timed("check --data", |tour| tour.gdo(&alpha, &["check", "--data"]))?;
        self.ui.note("    the same name for the whole tree on both; every stored byte was read back and its hash is right")?;
        self.summary(&alpha)
    }

    fn host(&self, name: &str) -> Result<Host> {
        let host = Host { tree: self.scratch.join(name).join("tree"), repo: self.scratch.join(name).join("repo") };
        std::fs::create_dir_all(&host.tree).context(|| format!("cannot make '{}'", host.tree.display()))?;
        Ok(host)
    }

    fn say(&mut self, text: &str) -> Result<()> {
        self.ui.note(format_args!("\n== {text}"))
    }

    fn timed<T>(&mut self, what: &'static str, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = step(self)?;
        self.times.push((what, start.elapsed()));
        Ok(result)
    }

    /// Runs the program as a person would, and returns what it printed.
    fn gdo(&mut self, host: &Host, args: &[&str]) -> Result<Value> {
        let shown_args: Vec<&str> = args.to_vec();
        self.ui.note(format_args!("  $ gdo {}", shown(shown_args.join(" ").as_bytes())))?;
        let output = Command::new(&self.program)
            .arg("--git-dir")
            .arg(&host.repo)
            .arg("--work-tree")
            .arg(&host.tree)
            .arg("--json")
            .args(args)
            .env_remove("GIT_DIR")
            .env_remove("GIT_WORK_TREE")
            .env_remove("GIT_DEVOPS_STORE")
            .output()
            .context(|| "cannot run the program itself")?;
        if !output.status.success() {
            let said = shown(String::from_utf8_lossy(&output.stderr).trim().as_bytes());
            return Err(Error::new(Kind::Bug, format!("'gdo {}' failed: {said}", args.join(" "))));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(text.trim())
            .map_err(|error| Error::new(Kind::Bug, format!("BUG: no JSON from 'gdo {}': {error}", args[0])))
    }

    /// Copies the tree, keeping what `cp -a` keeps; returns the disk image, if one was made.
    fn make_tree(&mut self, args: &TourArgs, tree: &Path) -> Result<Option<PathBuf>> {
        let sources = match &args.path {
            Some(path) => vec![path.clone()],
            None => ["/etc", "/usr/share/doc"].map(PathBuf::from).into_iter().filter(|path| path.is_dir()).collect(),
        };
        for source in &sources {
            let source = source.canonicalize().context(|| format!("cannot read '{}'", source.display()))?;
            self.ui.note(format_args!("  $ cp -a {} .", source.display()))?;
            let status = Command::new("cp").arg("-a").arg("--").arg(&source).arg(tree).status().context(|| "cannot run cp")?;
            if !status.success() {
                self.ui.note("    (cp could not read all of it: the tour goes on with the rest)")?;
            }
        }
        if args.path.is_some() {
            return Ok(None);
        }
        let image = tree.join("disk.img");
        make_image(&image, tree).context(|| format!("cannot make '{}'", image.display()))?;
        self.ui.note(format_args!("  a disk image of {} with {} of data", bytes(IMAGE_LEN), bytes(IMAGE_DATA)))?;
        Ok(Some(image))
    }

    fn print_snapshot(&mut self, report: &Value) -> Result<()> {
        let (seen, changed) = (number(report, "files_seen"), report["changes"].as_array().map_or(0, Vec::len));
        self.ui.note(format_args!("    {seen} files and directories, {changed} not as recorded"))?;
        let (new, known) = (number(report, "chunks_new"), number(report, "chunks_known"));
        if new + known > 0 {
            let stored = bytes(number(report, "bytes_stored"));
            self.ui
                .note(format_args!("    large files: {new} chunks new ({stored} stored), {known} shared with what was there"))?;
        }
        if report["commit"].is_null() {
            self.ui.note("    no commit: nothing to record")?;
        }
        Ok(())
    }

    /// Returns the name of the tree of the last commit: a hash over all content and all metadata.
    fn tree_id(&mut self, host: &Host) -> Result<String> {
        let output = Command::new(&self.program)
            .arg("--git-dir")
            .arg(&host.repo)
            .arg("--work-tree")
            .arg(&host.tree)
            .args(["git", "rev-parse", "HEAD^{tree}"])
            .output()
            .context(|| "cannot run the program itself")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn summary(&mut self, alpha: &Host) -> Result<()> {
        self.say("what is stored where")?;
        let (tree, n_files) = disk_usage(&alpha.tree)?;
        let (objects, _) = disk_usage(&alpha.repo.join("objects"))?;
        let (chunks, _) = disk_usage(&alpha.repo.join("devops/store"))?;
        self.ui.note(format_args!("  the tree itself          {:>12}  in {n_files} files", bytes(tree)))?;
        self.ui.note(format_args!("  git (small files, meta)  {:>12}", bytes(objects)))?;
        self.ui.note(format_args!("  chunk store (large)      {:>12}", bytes(chunks)))?;
        self.say("how long it took")?;
        for (what, time) in std::mem::take(&mut self.times) {
            self.ui.note(format_args!("  {what:<28} {:>8.3} s", time.as_secs_f64()))?;
        }
        Ok(())
    }
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_default()
}

/// Makes a sparse file that looks like a disk: stretches of real file content, zeros and holes.
fn make_image(image: &Path, tree: &Path) -> Result<()> {
    let mut file = File::create(image)?;
    file.set_len(IMAGE_LEN)?;
    let mut content = Vec::new();
    gather(tree, &mut content)?;
    if content.is_empty() {
        content.push(1);
    }
    let stretch = (IMAGE_DATA / 16) as usize;
    for number in 0..16 {
        file.seek(SeekFrom::Start(number as u64 * (IMAGE_LEN / 16)))?;
        let bytes: Vec<u8> = content.iter().copied().cycle().skip(number * stretch % content.len()).take(stretch).collect();
        file.write_all(&bytes)?;
    }
    Ok(())
}

/// Gathers file content for the image, as much as it needs.
fn gather(dir: &Path, content: &mut Vec<u8>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if content.len() as u64 >= IMAGE_DATA {
            break;
        }
        if kind.is_dir() {
            gather(&entry.path(), content)?;
        } else if kind.is_file() && entry.metadata()?.blocks_used() {
            File::open(entry.path())?.take(1 << 20).read_to_end(content)?;
        }
    }
    Ok(())
}

/// Says whether a file has content on the disk: the image itself, being made, has none.
trait BlocksUsed {
    fn blocks_used(&self) -> bool;
}

impl BlocksUsed for std::fs::Metadata {
    fn blocks_used(&self) -> bool {
        std::os::unix::fs::MetadataExt::blocks(self) > 0
    }
}

fn change_image(image: &Path) -> Result<()> {
    let mut file = File::options().write(true).open(image)?;
    file.seek(SeekFrom::Start(IMAGE_LEN / 2 + 12_345))?;
    Ok(file.write_all(&[0x5a; 4096])?)
}

/// Returns the bytes on the disk and the number of files below `dir`.
fn disk_usage(dir: &Path) -> Result<(u64, u64)> {
    let (mut n_bytes, mut n_files) = (0, 0);
    for entry in std::fs::read_dir(dir).context(|| format!("cannot read '{}'", dir.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        n_bytes += std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        n_files += 1;
        if metadata.is_dir() {
            let below = disk_usage(&entry.path())?;
            (n_bytes, n_files) = (n_bytes + below.0, n_files + below.1);
        }
    }
    Ok((n_bytes, n_files))
}
