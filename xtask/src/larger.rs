//! `cargo xtask larger`: a stream larger than the disk is checked in, held by another host, and restored on a third one with as little room.
//!
//! Hosts are directories; the one that makes and the store of the one that restores lie on filesystems of their own of 1 GiB, mounted from files. All of
//! them talk by a real sshd on the loopback. Needs root, and twice the stream's size in the scratch directory.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::acceptance::program;
use crate::command::{Beside, Context, Failure, Result, run, succeed, wrapped};
use crate::ensure;
use crate::packages::is_root;

/// MiB of each small filesystem.
const ROOM: u64 = 1024;
const BLOCK: usize = 1 << 20;

/// Runs `cargo xtask larger`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let (mut gib, mut gdo, mut scratch) = (6, None, None);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Failure(format!("'{}' needs a value", arg.display())));
        match arg.to_str() {
            Some("--gib") => gib = value()?.to_str().and_then(|n| n.parse().ok()).ok_or("--gib needs a number")?,
            Some("--gdo") => gdo = Some(PathBuf::from(value()?)),
            Some("--scratch") => scratch = Some(PathBuf::from(value()?)),
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    let gdo = program(gdo)?;
    let within = scratch.unwrap_or_else(|| crate::command::target_dir().join("larger"));
    std::fs::create_dir_all(&within)?;
    let scratch = within.canonicalize()?.join(format!("larger-{}", std::process::id()));
    ensure!(is_root(), "only root can mount: run this as root");
    std::fs::create_dir(&scratch)?;
    let proved = prove(&gdo, &scratch, gib << 30);
    std::fs::remove_dir_all(&scratch)?;
    proved.map(|()| ExitCode::SUCCESS)
}

/// Does it all, and prints what it took as the rows of a table.
fn prove(gdo: &Path, scratch: &Path, len: u64) -> Result {
    let mounts = [Mount::new(scratch, "maker")?, Mount::new(scratch, "small")?];
    let key = scratch.join("key");
    succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
    let maker = Host::new(gdo, &key, &mounts[0].dir.join("tree"), None)?;
    let holder = Host::new(gdo, &key, &scratch.join("holder"), None)?;
    let third = Host::new(gdo, &key, &scratch.join("third"), Some(mounts[1].dir.join("store")))?;
    for (host, name, other) in
        [(&maker, "holder", &holder), (&holder, "maker", &maker), (&third, "holder", &holder), (&third, "maker", &maker)]
    {
        let key = key.display().to_string();
        succeed(&mut host.gdo(&["remote", "add", name, &other.address(), "--host-key", &other.host_key()?, "-i", &key]))?;
    }
    for (host, key, value) in [
        (&maker, "devops.policy", "cache"),
        (&maker, "devops.quota", "512M"),
        (&maker, "devops.copies", "1"),
        (&holder, "devops.copies", "1"),
        (&third, "devops.policy", "cache"),
        (&third, "devops.quota", "800M"),
    ] {
        succeed(Command::new("git").args(["config", "--file"]).arg(host.dir.join(".git/config")).args([key, value]))?;
    }
    println!("| what | |\n|---|--:|\n| stream, MiB | {} |", len >> 20);
    println!("| free where it is made, MiB | {} |", free(&mounts[0].dir)? >> 20);
    let mut follow = Beside(holder.gdo(&["sync", "--follow", "--every", "1"]).stdout(Stdio::null()).spawn()?);
    let made = check_in(&maker, scratch, len, &mounts[0].dir)?;
    println!("| checking in, seconds | {:.0} |\n| the same, MB/s | {:.0} |", made.seconds, len as f64 / made.seconds / 1e6);
    println!("| peak memory of it, MiB | {} |\n| least free meanwhile, MiB | {} |", made.peak_rss >> 20, made.least_free >> 20);
    println!("| peak memory of 'sync --follow' on the holder, MiB | {} |", peak(follow.0.id())? >> 20);
    println!("| left of it where it was made, MiB | {} |", used(&maker.dir.join(".git/devops"))? >> 20);
    let held = until_held(&holder)?;
    let _ = follow.0.kill();
    // The lists of chunks come with the first synchronisation that knows the commit.
    succeed(&mut holder.gdo(&["sync"]))?;
    println!("| the holder hears of the commit after, seconds | {:.0} |", held.as_secs_f64());
    succeed(&mut maker.gdo(&["status", "--exit-code"]))?;
    succeed(&mut maker.gdo(&["check"]))?;
    succeed(&mut third.gdo(&["fetch"]))?;
    // The one that made it may be gone from now on.
    drop(maker.sshd);
    let started = Instant::now();
    let notes = scratch.join("usage");
    let restore = third.gdo(&["restore", "--source", "maker/main"]);
    let restored = run(&mut timed(&restore, &notes)?)?;
    ensure!(restored.code == 0, "'restore' exited with {}:\n{}", restored.code, restored.tail(15));
    let seconds = started.elapsed().as_secs_f64();
    println!("| restoring on the third, seconds | {seconds:.0} |\n| the same, MB/s | {:.0} |", len as f64 / seconds / 1e6);
    println!("| peak memory of it, MiB | {} |", peak_of(&notes)? >> 20);
    println!("| store of the third, MiB | {} |", used(&mounts[1].dir.join("store"))? >> 20);
    compare(&third.dir.join("stream"), len)?;
    println!("| bytes that differ | 0 |");
    Ok(())
}

/// What checking in took.
struct Made {
    seconds: f64,
    peak_rss: u64,
    least_free: u64,
}

fn check_in(maker: &Host, scratch: &Path, len: u64, mounted: &Path) -> Result<Made> {
    let notes = scratch.join("usage");
    let command = maker.gdo(&["snapshot", "--stdin", "stream", "--hand-over", "--wait", "120"]);
    let started = Instant::now();
    let mut child = timed(&command, &notes)?.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let (mut input, is_done, least) = (child.stdin.take().ok_or("no input")?, AtomicBool::new(false), AtomicU64::new(u64::MAX));
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                least.fetch_min(free(mounted).unwrap_or(u64::MAX), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        scope.spawn(move || {
            let (mut noise, mut left, mut block) = (Noise::default(), len, vec![0; BLOCK]);
            while left > 0 {
                let part = &mut block[..left.min(BLOCK as u64) as usize];
                noise.fill(part);
                left -= part.len() as u64;
                if input.write_all(part).is_err() {
                    break; // it tells why
                }
            }
        });
        let status = child.wait();
        is_done.store(true, Ordering::Relaxed);
        status
    })?;
    ensure!(status.success(), "the stream was not checked in");
    Ok(Made { seconds: started.elapsed().as_secs_f64(), peak_rss: peak_of(&notes)?, least_free: least.into_inner() })
}

/// Waits until the holder has the commit, and needs no other reason to keep what it has.
fn until_held(holder: &Host) -> Result<Duration> {
    let started = Instant::now();
    let git_dir = holder.dir.join(".git");
    while !succeed(Command::new("git").arg("--git-dir").arg(&git_dir).args(["for-each-ref", "refs/devops/in-flight-of"]))?
        .text()
        .is_empty()
    {
        ensure!(started.elapsed() < Duration::from_secs(300), "the holder does not hear of the commit");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(started.elapsed())
}

fn compare(path: &Path, len: u64) -> Result {
    let mut file = BufReader::with_capacity(BLOCK, File::open(path).context(|| format!("cannot read '{}'", path.display()))?);
    ensure!(file.get_ref().metadata()?.len() == len, "'{}' has another length", path.display());
    let (mut noise, mut found, mut wanted) = (Noise::default(), vec![0; BLOCK], vec![0; BLOCK]);
    for block in 0..len / BLOCK as u64 {
        file.read_exact(&mut found)?;
        noise.fill(&mut wanted);
        ensure!(found == wanted, "'{}' differs in its MiB {block}", path.display());
    }
    Ok(())
}

/// Bytes that nothing compresses, always the same ones.
struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()[..word.len()]);
        }
    }
}

/// A small filesystem, unmounted when dropped.
struct Mount {
    dir: PathBuf,
}

impl Mount {
    fn new(scratch: &Path, name: &str) -> Result<Self> {
        let (image, dir) = (scratch.join(format!("{name}.img")), scratch.join(name));
        File::create(&image)?.set_len(ROOM << 20)?;
        succeed(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
        std::fs::create_dir(&dir)?;
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir))?;
        Ok(Self { dir })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.dir));
    }
}

/// A host: a work tree with its repository, and a sshd that lets one key pull.
struct Host {
    gdo: PathBuf,
    dir: PathBuf,
    store: Option<PathBuf>,
    port: u16,
    keys: PathBuf,
    sshd: Beside,
}

impl Host {
    fn new(gdo: &Path, key: &Path, dir: &Path, store: Option<PathBuf>) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let keys = key.with_file_name(format!("keys-{}", dir.file_name().unwrap_or_default().display()));
        std::fs::create_dir_all(&keys)?;
        succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(keys.join("host_key")))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let at = |name: &str| keys.join(name).display().to_string();
        let settings = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSetEnv SHLVL=2\n",
            at("host_key"),
            at("authorized_keys")
        );
        std::fs::write(keys.join("sshd_config"), settings)?;
        std::fs::write(keys.join("authorized_keys"), "")?;
        let _ = std::fs::create_dir_all("/run/sshd"); // sshd wants it
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f", &at("sshd_config")]).stderr(File::create(keys.join("sshd.log"))?);
        let sshd = Beside(sshd.spawn().context(|| "cannot run sshd")?);
        let host = Self { gdo: gdo.to_owned(), dir: dir.to_owned(), store, port, keys, sshd };
        succeed(&mut host.gdo(&["init"]))?;
        let line = succeed(host.gdo(&["remote", "authorize"]).arg(key.with_extension("pub")))?.text();
        std::fs::write(host.keys.join("authorized_keys"), line + "\n")?;
        Ok(host)
    }

    fn gdo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.gdo);
        command.args(args).current_dir(&self.dir);
        if let Some(store) = &self.store {
            command.env("GIT_DEVOPS_STORE", store);
        }
        command
    }

    fn address(&self) -> String {
        format!("ssh://127.0.0.1:{}", self.port)
    }

    fn host_key(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.keys.join("host_key.pub"))?)
    }
}

/// Returns `command` so that GNU time notes its peak memory in `notes`.
fn timed(command: &Command, notes: &Path) -> Result<Command> {
    let notes = notes.to_str().ok_or("the scratch directory's name is not UTF-8")?;
    Ok(wrapped(command, Path::new("/usr/bin/time"), &["-q", "-f", "%M", "-o", notes]))
}

fn peak_of(notes: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(notes)?;
    Ok(text.trim().parse::<u64>().map_err(|_| format!("GNU time noted '{}'", text.trim()))? << 10)
}

/// Returns the peak memory of a process that runs, in bytes.
fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.ok_or("the kernel does not tell the peak memory")? << 10)
}

fn free(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Returns how many bytes lie below `dir`.
fn used(dir: &Path) -> Result<u64> {
    let listed = succeed(Command::new("du").args(["-s", "-B1"]).arg(dir))?.text();
    Ok(listed.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).ok_or("du told nothing")?)
}
