//! The programs that are compared, as shell scripts.
//!
//! A script finds the tree in `$SRC`, a directory of its own in `$REPO`, where restored things go in `$OUT`, what the second version of the tree has
//! anew in `$CHANGED`, our program in `$GDO`, and `lib/examples/floor.rs` in `$FLOOR`. What a program cannot do has no script.

use crate::packages::Need;

/// A program and what to type.
pub struct Tool {
    /// Its name in the tables.
    pub name: &'static str,
    /// The program, and the Debian package that it comes in; it is left out if there is no package and it is not installed.
    pub need: Option<Need>,
    /// Prints its version.
    pub version: &'static str,
    /// Makes an empty repository; of a tool that stores nothing, one that holds the tree, and after that also what the tree became. Not measured.
    pub init: &'static str,
    /// Stores the tree once more.
    pub store: &'static str,
    /// Tells what differs from the newest state.
    pub status: &'static str,
    /// Writes the newest state into `$OUT`, which may hold an older one.
    pub restore: &'static str,
    /// How the newest state comes into `$OUT` where an older one is.
    pub restore_over: Over,
    /// Writes the file `$FILE` of the newest state to standard output.
    pub one_file: &'static str,
    /// Reads and verifies all that is stored.
    pub check: &'static str,
    /// The same where that was done before; empty if it is no other command, and takes as long.
    pub check_again: &'static str,
    /// Forgets all states but the newest.
    pub forget: &'static str,
    /// Makes what is stored smaller.
    pub maintain: &'static str,
}

/// How a program writes a state over an older one.
pub enum Over {
    /// It cannot, or nothing is to be measured.
    Cannot,
    /// As into an empty directory: it leaves alone what is right already.
    AsEver,
    /// So.
    By(&'static str),
}

/// The beginning of each of our command lines.
macro_rules! gdo {
    () => {
        "$GDO --git-dir $REPO/git --work-tree $SRC --store $REPO/store "
    };
}

/// The beginning of each command line of stock git, which keeps names and content.
macro_rules! git {
    () => {
        "git -C $SRC --git-dir $REPO/git --work-tree $SRC -c gc.auto=0 -c core.bare=false "
    };
}

/// Ours, as it is without settings.
const GDO: Tool = Tool {
    name: "gdo",
    need: None,
    version: "$GDO --version",
    init: concat!(gdo!(), "init"),
    store: concat!("cd $SRC; ", gdo!(), "snapshot -m bench ."),
    status: concat!("cd $SRC; ", gdo!(), "status"),
    restore: concat!(gdo!(), "restore --target $OUT"),
    restore_over: Over::AsEver,
    one_file: concat!(gdo!(), "cat HEAD:$FILE"),
    check: concat!(gdo!(), "check --data --fresh"),
    check_again: concat!(gdo!(), "check --data"),
    forget: concat!(
        "root=$(",
        gdo!(),
        "git commit-tree -m bench 'HEAD^{tree}'); ",
        gdo!(),
        "git update-ref HEAD $root; ",
        gdo!(),
        "git reflog expire --expire=now --all; ",
        gdo!(),
        "gc --prune=now"
    ),
    maintain: concat!(gdo!(), "maintain"),
};

/// All programs; ours is the first.
pub const TOOLS: &[Tool] = &[
    GDO,
    // Whose store is about as large as those of the others; maintenance comes to the same.
    Tool {
        name: "gdo, level 4",
        init: concat!(gdo!(), "init; git config --file $REPO/git/config devops.level 4"),
        maintain: "",
        ..GDO
    },
    Tool {
        name: "restic",
        need: Some(("restic", "restic")),
        version: "restic version",
        init: "restic -q -r $REPO/restic init",
        store: "cd $SRC; restic -q -r $REPO/restic backup .",
        status: "",
        restore: "restic -q -r $REPO/restic restore latest --target $OUT",
        restore_over: Over::AsEver,
        one_file: "restic -q -r $REPO/restic dump latest /$FILE",
        check: "restic -q -r $REPO/restic check --read-data",
        check_again: "",
        forget: "restic -q -r $REPO/restic forget --keep-last 1 --prune",
        maintain: "",
    },
    Tool {
        name: "borg",
        need: Some(("borg", "borgbackup")),
        version: "borg --version",
        init: "borg init --encryption none $REPO/borg",
        store: "cd $SRC; borg create $REPO/borg::{now:%s%f} .",
        status: "",
        restore: "cd $OUT; borg extract $REPO/borg::$(borg list --last 1 --short $REPO/borg)",
        restore_over: Over::AsEver,
        one_file: "borg extract --stdout $REPO/borg::$(borg list --last 1 --short $REPO/borg) $FILE",
        check: "borg check --verify-data $REPO/borg",
        check_again: "",
        forget: "borg prune --keep-last 1 $REPO/borg; borg compact $REPO/borg",
        maintain: "",
    },
    Tool {
        name: "borg, zstd 3",
        need: Some(("borg", "borgbackup")),
        version: "borg --version",
        init: "borg init --encryption none $REPO/borg",
        store: "cd $SRC; borg create --compression zstd,3 $REPO/borg::{now:%s%f} .",
        status: "",
        restore: "",
        restore_over: Over::Cannot,
        one_file: "",
        check: "",
        check_again: "",
        forget: "borg prune --keep-last 1 $REPO/borg; borg compact $REPO/borg",
        maintain: "",
    },
    Tool {
        name: "rustic",
        need: Some(("rustic", "")),
        version: "rustic --version",
        init: "rustic -r $REPO/rustic init",
        store: "cd $SRC; rustic -r $REPO/rustic backup .",
        status: "",
        restore: "rustic -r $REPO/rustic restore latest $OUT",
        restore_over: Over::AsEver,
        one_file: "rustic -r $REPO/rustic dump latest:$FILE",
        check: "rustic -r $REPO/rustic check --read-data",
        check_again: "",
        forget: "rustic -r $REPO/rustic forget --keep-last 1 --prune",
        maintain: "",
    },
    Tool {
        name: "casync",
        need: Some(("casync", "casync")),
        version: "casync --version",
        init: "true",
        store: "casync make --exclude-nodump=no --store=$REPO/store $REPO/tree.caidx $SRC",
        status: "",
        restore: "casync extract --store=$REPO/store $REPO/tree.caidx $OUT",
        restore_over: Over::AsEver,
        one_file: "",
        check: "",
        check_again: "",
        forget: "casync gc --store=$REPO/store $REPO/tree.caidx",
        maintain: "",
    },
    Tool {
        name: "bup",
        need: Some(("bup", "bup")),
        version: "bup version",
        init: "bup -d $REPO/bup init",
        store: "bup -d $REPO/bup index $SRC; bup -d $REPO/bup save -q -n tree $SRC",
        status: "",
        restore: "bup -d $REPO/bup restore -C $OUT /tree/latest$SRC/.",
        restore_over: Over::Cannot,
        one_file: "bup -d $REPO/bup cat-file /tree/latest$SRC/$FILE",
        check: "bup -d $REPO/bup fsck",
        check_again: "",
        forget: "bup -d $REPO/bup rm --unsafe $(bup -d $REPO/bup ls /tree | grep -v latest | sort | head -n -1 | sed 's|^|/tree/|'); \
                 bup -d $REPO/bup gc --unsafe",
        maintain: "",
    },
    Tool {
        name: "tar, zstd -1",
        need: Some(("zstd", "zstd")),
        version: "zstd --version | grep -o 'v[0-9.]*'",
        init: "true",
        store: "tar -C $SRC --xattrs '--xattrs-include=*' --acls -cf - . | zstd -1 -q -f -o $REPO/tree.tar.zst",
        status: "",
        restore: "zstd -q -dc $REPO/tree.tar.zst | tar -C $OUT --xattrs '--xattrs-include=*' --acls -xpf -",
        restore_over: Over::Cannot,
        one_file: "zstd -q -dc $REPO/tree.tar.zst | tar -xOf - ./$FILE",
        check: "zstd -q -t $REPO/tree.tar.zst",
        check_again: "",
        forget: "",
        maintain: "",
    },
    // The limit of what writes files; of a restore over the old version, to write just what differs, which nobody knows before.
    Tool {
        name: "cp -a",
        need: None,
        version: "cp --version | head -n 1",
        init: "true",
        store: "if [ -e $REPO/copy ]; then mv $REPO/copy $REPO/old-$(date +%s%N); fi; cp -a $SRC $REPO/copy",
        status: "",
        restore: "cp -a $REPO/copy/. $OUT",
        restore_over: Over::By("cp -a $CHANGED/. $OUT"),
        one_file: "cat $REPO/copy/$FILE",
        check: "",
        check_again: "",
        forget: "",
        maintain: "",
    },
    Tool {
        name: "git",
        need: None,
        version: "git --version",
        init: "git init -q --bare $REPO/git",
        store: concat!(git!(), "add -A && ", git!(), "-c user.name=a -c user.email=a@b commit -q --allow-empty -m bench"),
        status: concat!(git!(), "status --porcelain"),
        restore: "",
        restore_over: Over::Cannot,
        one_file: "",
        check: "",
        check_again: "",
        forget: "",
        maintain: "",
    },
    // The limit of whoever hashes and compresses each file and each piece of one by itself.
    Tool {
        name: "floor: our codecs alone",
        need: None,
        version: "$GDO --version",
        init: "true",
        store: "$FLOOR store $SRC $REPO/floor",
        status: "",
        restore: "$FLOOR restore $REPO/floor $OUT",
        restore_over: Over::Cannot,
        one_file: "",
        check: "$FLOOR check $REPO/floor",
        check_again: "",
        forget: "",
        maintain: "",
    },
    B3SUM,
    // Without what the kernel has mapped of the page cache: read as we read it.
    Tool {
        name: "b3sum --no-mmap of our store",
        check: "find $REPO -type f -print0 | xargs -0 -n 8 -P $(nproc) b3sum --no-mmap",
        check_again: "find $REPO -type f -print0 | xargs -0 -n 8 -P $(nproc) b3sum --no-mmap",
        ..B3SUM
    },
];

/// The limit of what reads and hashes all.
const B3SUM: Tool = Tool {
    name: "b3sum of our store",
    need: Some(("b3sum", "b3sum")),
    version: "b3sum --version",
    init: concat!(gdo!(), "init; cd $SRC; ", gdo!(), "snapshot -m bench ."),
    store: "",
    status: "",
    restore: "",
    restore_over: Over::Cannot,
    one_file: "",
    check: "find $REPO -type f -print0 | xargs -0 b3sum",
    check_again: "find $REPO -type f -print0 | xargs -0 b3sum",
    forget: "",
    maintain: "",
};
