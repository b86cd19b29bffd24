//! `cargo xtask bench net`: what the network costs, between hosts in network namespaces with lines of a given speed.
//!
//! Bytes are those that came over the line of the host that pulls, with everything that ssh, TCP and IP add.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::with_section;
use crate::command::{Context, Failure, Outcome, Result, measured, repository, run, succeed, target_dir};
use crate::fixtures::Seeded;
use crate::netns::{self, Host, Net};
use crate::packages::Need;
use crate::{acceptance, ensure, packages};

/// What is compared with.
const NEEDS: &[Need] =
    &[("rsync", "rsync"), ("restic", "restic"), ("casync", "casync"), ("python3", "python3"), ("/usr/bin/time", "time")];

struct Options {
    gdo: PathBuf,
    scratch: PathBuf,
    /// Bytes of the file that nothing compresses, and of the image.
    large: u64,
    image: u64,
    /// Megabits in a second that a holder sends.
    mbit: u32,
    rounds: usize,
    n_cuts: u64,
}

type Scene = fn(&Options) -> Result<String>;

const SCENES: &[(&str, Scene)] = &[
    ("Three holders at once", stripes),
    ("The next version of an image", next_version),
    ("As fast as scp, without a limit", loopback),
    ("Cut off again and again", cuts),
    ("Five hosts in four topologies", topologies),
];

/// Runs `cargo xtask bench net`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let scratch = target_dir().join("bench-net");
    let mut options = Options { gdo: PathBuf::new(), scratch, large: 1 << 30, image: 1 << 30, mbit: 100, rounds: 5, n_cuts: 20 };
    let (mut write, mut gdo, mut only) = (None, None, Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("'{}' needs a value", arg.display()));
        let word = |value: OsString| value.to_string_lossy().into_owned();
        match arg.to_str() {
            Some("--quick") => {
                (options.large, options.image, options.rounds, options.n_cuts) = (128 << 20, 128 << 20, 1, 4);
            }
            Some("--write") => write = Some(repository().join("docs/network.md")),
            Some("--only") => only.push(word(value()?)),
            Some("--mbit") => options.mbit = word(value()?).parse().map_err(|_| "the megabits are a number")?,
            Some("--rounds") => options.rounds = word(value()?).parse().map_err(|_| "the rounds are a number")?,
            Some("--gdo") => gdo = Some(PathBuf::from(value()?)),
            Some("--scratch") => options.scratch = std::path::absolute(value()?)?,
            _ => return Err(Failure(format!("unknown option '{}'", arg.display()))),
        }
    }
    ensure!(options.rounds > 0, "at least one round is needed");
    packages::install(&[netns::NEEDS, NEEDS])?;
    ensure!(packages::is_root(), "network namespaces need root");
    options.gdo = acceptance::program(gdo)?;
    for (title, scene) in SCENES.iter().filter(|(title, _)| super::is_meant(&only, title)) {
        let _ = fs::remove_dir_all(&options.scratch);
        let text = scene(&options).context(|| title)?;
        let section = format!("{}\n{text}", surroundings(&options)?);
        println!("## {title}\n\n{section}");
        if let Some(path) = &write {
            let page = fs::read_to_string(path).context(|| format!("cannot read '{}'", path.display()))?;
            fs::write(path, with_section(&page, title, &section)).context(|| "cannot write the page")?;
        }
    }
    fs::remove_dir_all(&options.scratch)?;
    Ok(ExitCode::SUCCESS)
}

/// Two or more hosts: one that pulls, and holders that serve the same repository.
struct World<'a> {
    options: &'a Options,
    net: Net,
    /// The tree whose repository all holders serve.
    origin: PathBuf,
    client: usize,
    holders: Vec<usize>,
}

impl<'a> World<'a> {
    /// Sets up hosts; the holders send as much as `mbit` says.
    fn new(options: &'a Options, n_holders: usize, mbit: Option<u32>) -> Result<Self> {
        let mut net = Net::new(&options.scratch)?;
        let client = net.add(None)?;
        let holders = (0..n_holders).map(|_| net.add(mbit)).collect::<Result<_>>()?;
        let origin = options.scratch.join("origin");
        fs::create_dir_all(&origin)?;
        let world = Self { options, net, origin, client, holders };
        world.at_origin(&["init"])?;
        Ok(world)
    }

    fn client(&self) -> &Host {
        self.net.host(self.client)
    }

    fn holder(&self, number: usize) -> &Host {
        self.net.host(self.holders[number])
    }

    fn at_origin(&self, args: &[&str]) -> Result<Outcome> {
        succeed(Command::new(&self.options.gdo).args(args).current_dir(&self.origin))
    }

    /// Returns the command that sshd of a holder runs for who pulls.
    fn serve(&self) -> String {
        format!("{} --git-dir {} serve", self.options.gdo.display(), self.origin.join(".git").display())
    }

    /// Lets the client pull from all holders into a new repository; the last holder answers by `last`, if that is given.
    fn new_repository(&self, last: Option<&str>) -> Result<PathBuf> {
        let dir = self.client().dir.join("tree");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        self.pull(&["init"])?;
        for (at, number) in self.holders.iter().enumerate() {
            let holder = self.net.host(*number);
            let script = last.filter(|_| at + 1 == self.holders.len()).map(|script| script.replace("SERVE", &self.serve()));
            let command = match script {
                None => self.serve(),
                Some(script) => {
                    fs::write(holder.dir.join("answer"), script)?;
                    format!("sh {}", holder.dir.join("answer").display())
                }
            };
            holder.forbid_all()?;
            holder.authorize(&self.client().key(), Some(&command))?;
            let (name, address) = (format!("h{at}"), format!("root@{}", holder.address));
            let key = self.client().key().display().to_string();
            self.pull(&["remote", "add", &name, &address, "--host-key", &holder.host_key()?, "-i", &key])?;
        }
        self.pull(&["fetch", "h0"])?;
        Ok(dir)
    }

    fn pulling(&self, args: &[&str]) -> Command {
        let mut command = self.client().command(&self.options.gdo);
        command.arg("-C").arg(self.client().dir.join("tree")).args(args);
        command
    }

    fn pull(&self, args: &[&str]) -> Result<Outcome> {
        succeed(&mut self.pulling(args))
    }

    fn get(&self) -> Result<Got> {
        let (before, started) = (self.client().received()?, Instant::now());
        let outcome = run(&mut self.pulling(&["get", "--json", "--source", "h0/main"]))?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(matches!(outcome.code, 0 | 3), "get failed: {}", outcome.said());
        let said: Value = serde_json::from_slice(&outcome.stdout).map_err(|_| Failure(outcome.said()))?;
        ensure!(said["missing"] == 0, "chunks are missing: {}", outcome.said());
        Ok(Got { seconds, moved: self.client().received()? - before, said })
    }

    /// Fails unless the file `name` is on the client what it is at the origin.
    fn expect_equal(&self, name: &str) -> Result {
        let cat = self.pulling(&["cat", &format!("h0/main:{name}")]).stdout(Stdio::piped()).spawn()?;
        let output = cat.stdout.ok_or("the output is piped")?;
        let same = Command::new("cmp").arg("-").arg(self.origin.join(name)).stdin(output).status()?;
        ensure!(same.success(), "'{name}' did not come as it is");
        Ok(())
    }
}

/// What it took to get a file.
struct Got {
    seconds: f64,
    moved: u64,
    said: Value,
}

const MIB: f64 = (1 << 20) as f64;

/// Passes on what a holder says, and at 3 MB does what is wrong with it.
const FILTER: &str = r#"SERVE | python3 -c '
import sys, time
at = 0
while True:
    part = bytearray(sys.stdin.buffer.raw.read(65536))
    if not part: break
    if at <= 3000000 < at + len(part): FAULT
    at += len(part)
    sys.stdout.buffer.write(part); sys.stdout.buffer.flush()
'"#;
const STALLS: &str = "time.sleep(60)";
const LIES: &str = "part[3000000 - at] ^= 1";

fn stripes(options: &Options) -> Result<String> {
    let world = World::new(options, 3, Some(options.mbit))?;
    write_noise(&world.origin.join("large"), options.large)?;
    world.at_origin(&["snapshot", "-q", "."])?;
    let one = f64::from(options.mbit) * 1e6 / 8.0;
    let mut text = format!(
        "A file of {} MiB that nothing compresses, from three holders that send {} Mbit/s each, headers included. The share is that of the bytes of \
         the file in what all good holders could have sent in the time that the whole command took.\n\n",
        options.large >> 20,
        options.mbit
    );
    text += "| third holder | seconds | MB/s | share of all good ones | wanted | moved beyond the file | told |\n|---|--:|--:|--:|--:|--:|---|\n";
    for (what, last, n_good) in
        [("good", None, 3.0), ("stalls after 3 MB", Some(STALLS), 2.0), ("lies after 3 MB", Some(LIES), 2.0)]
    {
        world.new_repository(last.map(|fault| FILTER.replace("FAULT", fault)).as_deref())?;
        let got = world.get().context(|| what)?;
        world.expect_equal("large")?;
        let rate = options.large as f64 / got.seconds;
        let told = got.said["hosts"][2]["failure"].as_str().unwrap_or("").chars().take(60).collect::<String>();
        let (share, beyond) = (100.0 * rate / (n_good * one), 100.0 * (got.moved as f64 / options.large as f64 - 1.0));
        writeln!(text, "| {what} | {:.1} | {:.1} | {share:.1} % | 90 % | {beyond:.1} % | {told} |", got.seconds, rate / 1e6)
            .expect("BUG: a string");
        eprintln!("{what}: {share:.1} %, {}", got.said["hosts"]);
    }
    Ok(text)
}

fn next_version(options: &Options) -> Result<String> {
    let mut rows = String::new();
    let mut row = |what: &str, moved: u64, chunks: Option<u64>| {
        let (chunks, ratio) = match chunks {
            Some(chunks) => (format!("{:.1}", chunks as f64 / MIB), format!("{:.2}", moved as f64 / chunks as f64)),
            None => Default::default(),
        };
        writeln!(rows, "| {what} | {:.1} | {chunks} | {ratio} |", moved as f64 / MIB).expect("BUG: a string");
        eprintln!("{what}: {moved}");
    };
    let world = World::new(options, 1, None)?;
    let image = world.origin.join("disk.img");
    for chunker in ["gear", "fixed:size=4096"] {
        let _ = fs::remove_dir_all(world.origin.join(".git"));
        write_image(&image, options.image)?;
        world.at_origin(&["init"])?;
        world.at_origin(&["attributes", "disk.img", &format!("chunker={chunker}")])?;
        world.at_origin(&["snapshot", "-q", "."])?;
        world.new_repository(None)?;
        world.get()?;
        change_pages(&image, options.image)?;
        world.at_origin(&["snapshot", "-q", "."])?;
        let before = world.client().received()?;
        world.pull(&["fetch"])?;
        let got = world.get()?;
        let moved = world.client().received()? - before;
        world.expect_equal("disk.img")?;
        row(&format!("gdo, chunker={chunker}"), moved, got.said["stored_bytes"].as_u64());
    }
    fs::remove_dir_all(world.origin.join(".git"))?;
    fs::remove_dir_all(world.client().dir.join("tree"))?;
    world.holder(0).forbid_all()?;
    world.holder(0).authorize(&world.client().key(), None)?;
    for (what, script) in RIVALS {
        write_image(&image, options.image)?;
        let work = world.client().dir.join("work");
        fs::create_dir_all(&work)?;
        let [prepare, first, next, pull] = *script;
        world.rival(world.holder(0), prepare).context(|| what)?;
        world.rival(world.client(), first).context(|| what)?;
        change_pages(&image, options.image)?;
        world.rival(world.holder(0), next).context(|| what)?;
        let before = world.client().received()?;
        world.rival(world.client(), pull).context(|| what)?;
        row(what, world.client().received()? - before, None);
        fs::remove_dir_all(&work)?;
        let _ = fs::remove_dir_all(world.holder(0).dir.join("repo"));
    }
    Ok(format!(
        "An image of {} MiB, half of it text and half of it bytes that nothing compresses; one in a hundred of its pages of 4 KiB is new. What the host \
         that has the old version receives to get the new one. Wanted: at most 1.3 times what the new chunks take, compressed.\n\n\
         | what | moved MiB | new chunks MiB | ratio |\n|---|--:|--:|--:|\n{rows}",
        options.image >> 20
    ))
}

/// A rival, and its four steps: the holder stores the first version, the client gets it, the holder stores the next one, the client gets that.
type Rival = (&'static str, &'static [&'static str; 4]);

const RIVALS: &[Rival] = &[
    (
        "rsync",
        &[
            "true",
            "rsync -e $RSH root@$HOLDER:$IMAGE work/",
            "true",
            "rsync --ignore-times --inplace -e $RSH root@$HOLDER:$IMAGE work/",
        ],
    ),
    (
        "restic copy",
        &[
            "restic -q init -r repo; cd $ORIGIN; restic -q backup -r $REPO disk.img",
            "restic -q init -r work/repo --from-repo sftp:root@$HOLDER:$REPO -o sftp.command=\"$RSH root@$HOLDER -s sftp\" --copy-chunker-params; \
             restic -q copy -r work/repo --from-repo sftp:root@$HOLDER:$REPO -o sftp.command=\"$RSH root@$HOLDER -s sftp\"",
            "cd $ORIGIN; restic -q backup -r $REPO disk.img",
            "restic -q copy -r work/repo --from-repo sftp:root@$HOLDER:$REPO -o sftp.command=\"$RSH root@$HOLDER -s sftp\"; \
             test $(restic -q -r work/repo snapshots --json | grep -o '\"tree\"' | wc -l) = 2",
        ],
    ),
    (
        "casync",
        &[
            "mkdir repo; casync make --store=repo/store repo/1.caibx $IMAGE",
            "CASYNC_SSH_PATH=$RSH casync extract --store=root@$HOLDER:$REPO/store root@$HOLDER:$REPO/1.caibx work/disk.img",
            "casync make --store=repo/store repo/2.caibx $IMAGE",
            "CASYNC_SSH_PATH=$RSH casync extract --store=root@$HOLDER:$REPO/store --seed=work/disk.img root@$HOLDER:$REPO/2.caibx work/new.img; \
             cmp work/new.img $IMAGE",
        ],
    ),
];

impl World<'_> {
    /// Runs a step of a rival on `host`.
    fn rival(&self, host: &Host, script: &str) -> Result<Outcome> {
        let holder = self.holder(0);
        let rsh = self.client().dir.join("rsh");
        fs::write(&rsh, format!("#!/bin/sh\nexec ssh {} \"$@\"\n", self.client().ssh_options().join(" ")))?;
        fs::set_permissions(&rsh, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut command = host.command("sh");
        command.args(["-ec", script]).env("HOLDER", &holder.address).env("RSH", &rsh).env("REPO", holder.dir.join("repo"));
        command.env("ORIGIN", &self.origin).env("IMAGE", self.origin.join("disk.img")).env("HOME", &host.dir);
        command.env("RESTIC_PASSWORD", "bench").env("RESTIC_FROM_PASSWORD", "bench");
        succeed(&mut command)
    }
}

fn loopback(options: &Options) -> Result<String> {
    let world = World::new(options, 0, None)?;
    write_noise(&world.origin.join("large"), options.large / 2)?;
    world.at_origin(&["snapshot", "-q", "."])?;
    // The client is its own holder: what it sends to its own address does not leave it.
    let world = World { holders: vec![world.client], ..world };
    let client = world.client();
    let rsh = client.ssh_options();
    let target = client.dir.join("copy");
    let mut costs = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        for at in 0..3 {
            let at = (at + round) % 3;
            world.new_repository(None)?;
            let _ = fs::remove_file(&target);
            let mut command = match at {
                0 => world.pulling(&["get", "--json", "--source", "h0/main"]),
                _ => {
                    client.forbid_all()?;
                    client.authorize(&client.key(), None)?;
                    let mut scp = client.command("scp");
                    // With the cipher that gdo asks for, too: what is left is not the cipher's.
                    let cipher: &[&str] = if at == 2 { &["-c", "aes128-gcm@openssh.com"] } else { &[] };
                    scp.args(&rsh).args(cipher).arg("-q").arg(format!(
                        "root@{}:{}",
                        client.address,
                        world.origin.join("large").display()
                    ));
                    scp.arg(&target);
                    scp
                }
            };
            succeed(&mut Command::new("sync"))?;
            let before = client.sshd_cpu()?;
            let (outcome, usage) = measured(&with_sync(&mut command, client), &options.scratch)?;
            let wall = outcome.exits(0)?.wall.as_secs_f64();
            // What sshd started is counted when it has ended.
            std::thread::sleep(Duration::from_millis(300));
            costs[at].push((wall, usage.cpu + client.sshd_cpu()? - before));
        }
    }
    let mut text = format!(
        "A file of {} MiB that nothing compresses, from a sshd on the same host; medians of {} rounds in which they take turns, each with the sync that \
         it owes. Processor time is that of both sides. `gdo get` proves every chunk by its hash; scp does not.\n\n\
         | what | seconds | MB/s | CPU s, both sides |\n|---|--:|--:|--:|\n",
        options.large >> 21,
        options.rounds
    );
    for (what, costs) in ["gdo get", "scp", "scp, aes128-gcm"].iter().zip(&mut costs) {
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let wall = median(costs.iter().map(|cost| cost.0).collect());
        let cpu = median(costs.iter().map(|cost| cost.1).collect());
        let rate = options.large as f64 / 2e6 / wall;
        writeln!(text, "| {what} | {wall:.2} | {rate:.0} | {cpu:.2} |").expect("BUG: a string");
    }
    Ok(text)
}

/// Returns the command with a sync of the file system that it writes to.
fn with_sync(command: &mut Command, host: &Host) -> Command {
    let mut both = Command::new("sh");
    both.args(["-c", "\"$@\" && sync -f \"$DIR\"", "sh"]).arg(command.get_program()).args(command.get_args());
    both.env("DIR", &host.dir).current_dir(&host.dir);
    both
}

fn topologies(options: &Options) -> Result<String> {
    super::topologies::measure(&options.gdo, &options.scratch, options.large / 16, options.mbit)
}

fn cuts(options: &Options) -> Result<String> {
    let world = World::new(options, 3, Some(options.mbit))?;
    write_noise(&world.origin.join("large"), options.large)?;
    world.at_origin(&["snapshot", "-q", "."])?;
    world.new_repository(None)?;
    let clean = world.get()?;
    world.new_repository(None)?;
    let begun = world.client().received()?;
    let mut moments: Vec<u64> = {
        let mut random = Seeded::new(5);
        (0..options.n_cuts).map(|_| random.next() % clean.moved).collect()
    };
    moments.sort_unstable();
    let mut queued = 0;
    for (number, moment) in moments.iter().enumerate() {
        let mut get = world.pulling(&["get", "--source", "h0/main"]);
        let mut get = get.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // Not before it has moved something.
        let from = world.client().received()?;
        while get.try_wait()?.is_none() {
            let now = world.client().received()?;
            if now - begun >= *moment && now > from + (1 << 18) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for holder in &world.holders {
            queued += world.net.host(*holder).queued()?;
        }
        match number % 2 {
            0 => get.kill()?,
            _ => world.holders.iter().try_for_each(|holder| world.net.host(*holder).cut_sessions())?,
        }
        get.wait()?;
        eprintln!("cut {number}: {:.1} MiB moved", (world.client().received()? - begun) as f64 / MIB);
    }
    world.get()?;
    let moved = world.client().received()? - begun;
    world.expect_equal("large")?;
    world.pull(&["check", "-q", "--data"])?;
    let more = |moved: u64| 100.0 * (moved as f64 / clean.moved as f64 - 1.0);
    Ok(format!(
        "A file of {} MiB from three holders of {} Mbit/s each, cut off at {} random moments: by turns `gdo` is killed (SIGKILL) and all holders lose \
         their sessions. Wanted: at most 2 % more than one clean run. What waits in the queues of the lines (`tc tbf` with 50 ms) when they are cut \
         arrives all the same, and is lost to whoever sends.\n\n\
         | what | moved MiB | more |\n|---|--:|--:|\n| one clean run | {:.1} | |\n| {} cuts, and a last run | {:.1} | {:.2} % |\n\
         | without what waited in the queues at the cuts | {:.1} | {:.2} % |\n",
        options.large >> 20,
        options.mbit,
        moments.len(),
        clean.moved as f64 / MIB,
        moments.len(),
        moved as f64 / MIB,
        more(moved),
        (moved - queued.min(moved)) as f64 / MIB,
        more(moved - queued.min(moved))
    ))
}

/// Writes a file of bytes that nothing compresses.
pub fn write_noise(path: &Path, len: u64) -> Result {
    let file = File::create(path)?;
    let mut random = Seeded::new(1);
    for at in (0..len).step_by(1 << 20) {
        file.write_all_at(&random.bytes((len - at).min(1 << 20) as usize), at)?;
    }
    Ok(())
}

const PAGE: u64 = 4096;

/// Writes the first version of the image: stretches of 256 KiB, by turns text and what nothing compresses.
fn write_image(path: &Path, len: u64) -> Result {
    let file = File::create(path)?;
    let mut random = Seeded::new(2);
    for (number, at) in (0..len).step_by(256 << 10).enumerate() {
        let bytes = if number % 2 == 0 { random.bytes(256 << 10) } else { random.text(256 << 10) };
        file.write_all_at(&bytes, at)?;
    }
    Ok(())
}

/// Makes one in a hundred pages new, with content of the kind that is there.
fn change_pages(path: &Path, len: u64) -> Result {
    let file = File::options().write(true).open(path)?;
    let mut random = Seeded::new(3);
    for _ in 0..len / PAGE / 100 {
        let page = random.next() % (len / PAGE);
        let is_text = (page * PAGE / (256 << 10)) % 2 == 1;
        let bytes = if is_text { random.text(PAGE as usize) } else { random.bytes(PAGE as usize) };
        file.write_all_at(&bytes[..PAGE as usize], page * PAGE)?;
    }
    Ok(())
}

fn surroundings(options: &Options) -> Result<String> {
    let first_line = |script: &str| -> Result<String> {
        let outcome = run(Command::new("sh").args(["-c", script]).env("GDO", &options.gdo).current_dir(repository()))?;
        Ok(outcome.said().lines().next().unwrap_or("unknown").trim().to_owned())
    };
    let mut text = String::new();
    for (what, script) in [
        ("date", "date -u +%F"),
        ("commit", "git rev-parse --short HEAD"),
        ("processor", "n=$(nproc); sed -n \"s/^model name.*: \\(.*\\)/$n x \\1/p\" /proc/cpuinfo"),
        ("load in the last minutes", "cut -d' ' -f1-3 /proc/loadavg"),
        ("kernel", "uname -sr"),
        (
            "versions",
            "echo $($GDO --version), $(ssh -V 2>&1), $(rsync --version | head -n 1 | cut -c1-20), $(restic version | cut -d' ' -f1-2), $(casync --version | head -n 1)",
        ),
    ] {
        writeln!(text, "- {what}: {}", first_line(script)?).expect("BUG: a string");
    }
    Ok(text)
}
