//! `gdo tour`

mod sshd;

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use git_devops::durable::Lock;
use git_devops::error::{Context, Error, Kind, Result};
use serde_json::Value;

use crate::ui::{Ui, bytes, shown};

/// Show what this does: two hosts, one stored and one brought up from it, in a scratch directory, in a minute
///
/// Copies a real tree into a scratch directory, stores it as host 'alpha', brings host 'beta' up from that by an sshd that it starts on the loopback,
/// stores what came there as well and compares: if even one bit of content or metadata differed, the trees of both would have different names. Then
/// removes all of it again, also when it is interrupted.
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
    /// Remove the scratch directory DIR when standard input ends, unless it says to keep it
    #[arg(long, value_name = "DIR", hide = true)]
    sweep: Option<PathBuf>,
}

/// Length of the disk image that the tour makes, and of the data in it, in bytes.
const IMAGE_LEN: u64 = 512 << 20;
const IMAGE_DATA: u64 = 64 << 20;

pub fn run(ui: &mut Ui, args: &TourArgs) -> Result<()> {
    if let Some(dir) = &args.sweep {
        return sweep(dir);
    }
    let program = std::env::current_exe()?;
    let scratch = match &args.scratch {
        Some(dir) => Scratch::make(&std::path::absolute(dir)?, &program)?,
        None => {
            remove_dead(&std::env::temp_dir());
            Scratch::make(&std::env::temp_dir().join(format!("{SCRATCH_PREFIX}{}", std::process::id())), &program)?
        }
    };
    let mut tour = Tour { ui, scratch: scratch.dir.clone(), program, times: Vec::new() };
    let result = tour.walk(args);
    scratch.end(args.keep)?;
    if args.keep {
        tour.ui.note(format_args!("\nkept: {}", tour.scratch.display()))?;
    }
    result
}

const SCRATCH_PREFIX: &str = "gdo-tour-";
/// In a scratch directory: locked as long as its tour runs, and gone when it is to be kept.
const SCRATCH_LOCK: &str = "lock";
/// What the sweeper is told when the scratch directory is to stay.
const KEEP: &[u8] = b"keep";

/// The scratch directory, and the process that removes it when the tour ends, however it ends.
struct Scratch {
    dir: PathBuf,
    sweeper: Child,
    _lock: Lock,
}

impl Scratch {
    fn make(dir: &Path, program: &Path) -> Result<Self> {
        let what = || format!("cannot make the scratch directory '{}'", dir.display());
        if is_dead(dir) {
            std::fs::remove_dir_all(dir).context(what)?;
        }
        std::fs::DirBuilder::new().mode(0o700).create(dir).context(what)?;
        // Locked before it has its name: whoever finds the file unlocked may take the tour for dead.
        let lock = Lock::exclusive(&dir.join("lock.new"))?;
        std::fs::rename(dir.join("lock.new"), dir.join(SCRATCH_LOCK)).context(what)?;
        // In a process group of its own, so that Ctrl-C ends us and not it.
        let mut command = Command::new(program);
        command.arg("tour").arg("--sweep").arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let sweeper = command.spawn().context(|| "cannot run the program itself")?;
        Ok(Self { dir: dir.to_owned(), sweeper, _lock: lock })
    }

    fn end(mut self, keep: bool) -> Result<()> {
        if let (Some(mut stdin), true) = (self.sweeper.stdin.take(), keep) {
            stdin.write_all(KEEP)?;
        }
        let what = || format!("cannot remove '{}'", self.dir.display());
        match self.sweeper.wait().context(what)?.success() {
            true => Ok(()),
            false => Err(Error::new(Kind::Io, what())),
        }
    }
}

/// Waits until the tour in `dir` is over, then removes that directory, or, if it was told so, only the mark that a later tour would remove it by.
fn sweep(dir: &Path) -> Result<()> {
    let mut said = Vec::new();
    std::io::stdin().read_to_end(&mut said)?;
    let what = || format!("cannot remove '{}'", dir.display());
    if said == KEEP {
        return std::fs::remove_file(dir.join(SCRATCH_LOCK)).context(what);
    }
    sshd::end_left(&sshd_dir(dir));
    // What an interrupted tour had started may go on writing for a moment.
    for _ in 0..100 {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => std::thread::sleep(Duration::from_millis(100)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => return other.context(what),
        }
    }
    std::fs::remove_dir_all(dir).context(what)
}

/// Returns where the sshd of a tour has its files.
fn sshd_dir(scratch: &Path) -> PathBuf {
    scratch.join("alpha").join("sshd")
}

/// Removes the scratch directories of tours that were killed together with their sweepers, or ended by a power cut.
fn remove_dead(temp_dir: &Path) {
    for entry in std::fs::read_dir(temp_dir).into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().strip_prefix(SCRATCH_PREFIX).map(str::to_owned);
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) && is_dead(&entry.path()) {
            // A later tour tries again.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Says whether `dir` surely is the scratch directory of a tour of this user that is no more: it has our lock, and nobody holds it.
fn is_dead(dir: &Path) -> bool {
    let is_own = |path: &Path, is_kind: fn(&std::fs::Metadata) -> bool| {
        path.symlink_metadata().is_ok_and(|found| is_kind(&found) && found.uid() == rustix::process::geteuid().as_raw())
    };
    let lock = dir.join(SCRATCH_LOCK);
    is_own(dir, std::fs::Metadata::is_dir) && is_own(&lock, std::fs::Metadata::is_file) && Lock::exclusive(&lock).is_ok()
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

        let store = self.bring_up(&alpha, &beta)?;
        self.say("beta: look at all that came, in a repository that knows nothing of it")?;
        let proof = Host { repo: self.scratch.join("beta").join("proof"), ..beta };
        self.gdo(&proof, &["--store", &store, "init"])?;
        let second = self
            .timed("snapshot of beta", |tour| tour.gdo(&proof, &["--store", &store, "snapshot", "-m", "as it came up", "."]))?;
        self.print_snapshot(&second)?;

        self.say("proof that both are alike: content, owners, modes, times to the nanosecond, links, holes, attributes")?;
        let (a, b) = (self.tree_id(&alpha)?, self.tree_id(&proof)?);
        self.ui.note(format_args!("    alpha {a}\n    beta  {b}"))?;
        if a != b {
            return Err(Error::new(Kind::Bug, "the two hosts differ; look at them with 'gdo tour --keep' and 'gdo diff'"));
        }
        self.timed("check --data", |tour| tour.gdo(&alpha, &["check", "--data"]))?;
        self.ui.note("    the same name for the whole tree on both; every stored byte was read back and its hash is right")?;
        self.summary(&alpha)
    }

    /// Makes host `beta` what `alpha` is, over ssh where that can be, and returns the store that has its chunks.
    fn bring_up(&mut self, alpha: &Host, beta: &Host) -> Result<String> {
        let sshd = sshd::Sshd::start(&sshd_dir(&self.scratch), |public| {
            let public = public.display().to_string();
            let line = self.gdo(alpha, &["remote", "authorize", &public]).map_err(|error| error.to_string())?;
            line["line"].as_str().map(|line| format!("{line}\n")).ok_or_else(|| "no line for authorized_keys".to_owned())
        });
        let sshd = match sshd {
            Ok(sshd) => sshd,
            Err(why) => {
                self.say("beta: bring a second host up from it")?;
                self.ui.note(format_args!("    (not over ssh, as hosts do, because that does not work here: {why})"))?;
                return self.bring_up_beside(alpha, beta);
            }
        };
        self.say("beta: bring a second host up from it, over ssh, with a key that may pull from alpha and do nothing else")?;
        self.gdo(beta, &["init"])?;
        let (address, host_key, key) = (sshd.address(), sshd.host_key(), sshd.key());
        self.gdo(beta, &["remote", "add", "alpha", &address, "--host-key", &host_key, "-i", &key])?;
        self.timed("fetch", |tour| tour.gdo(beta, &["fetch"]))?;
        let got = self.timed("get", |tour| tour.gdo(beta, &["get", "--source", "alpha/main"]))?;
        let (n, came) = (number(&got, "chunks"), number(&got["hosts"][0], "bytes"));
        self.ui.note(format_args!("    {n} chunks of large files, {} over the line", bytes(came)))?;
        let restored = self.timed("restore", |tour| tour.gdo(beta, &["restore", "--source", "alpha/main"]))?;
        self.print_restored(&restored)?;
        Ok(beta.repo.join("devops/store").display().to_string())
    }

    /// Does the same without a network.
    fn bring_up_beside(&mut self, alpha: &Host, beta: &Host) -> Result<String> {
        let target = beta.tree.display().to_string();
        let restored = self.timed("restore", |tour| tour.gdo(alpha, &["restore", "--target", &target]))?;
        self.print_restored(&restored)?;
        Ok(alpha.repo.join("devops/store").display().to_string())
    }

    fn print_restored(&mut self, restored: &Value) -> Result<()> {
        let (n, written) = (number(restored, "files_seen"), number(restored, "bytes_written"));
        self.ui.note(format_args!("    {n} files and directories, {} written", bytes(written)))
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
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
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
