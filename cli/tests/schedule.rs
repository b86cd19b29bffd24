//! A machine follows its type by itself when it is told to, and nothing of others is replaced.

use crate::common::World;

#[test]
fn a_timer_or_a_line_for_cron_is_written_and_removed_on_demand() {
    let world = World::new();
    world.sh("mkdir r");
    let gdo = |args: &[&str]| world.gdo(&[&["--root", "r"], args].concat());
    assert_eq!(world.gdo(&["schedule"]).code, 2, "a directory is no machine");
    assert_eq!(gdo(&["init", "--system"]).code, 0);
    let planned = gdo(&["schedule", "-n"]);
    assert!(planned.out.contains("ExecStart=") && planned.out.contains("RandomizedDelaySec=15min"), "{}", planned.out);
    assert!(!world.exists("r/etc/systemd"));
    assert_eq!(gdo(&["schedule", "--every", "30", "--jitter", "5", "-r"]).code, 0);
    assert_eq!(gdo(&["schedule", "--every", "30", "--jitter", "5", "-r"]).code, 0, "again is no mistake");
    let (service, timer) = (world.read("r/etc/systemd/system/gdo-up.service"), world.read("r/etc/systemd/system/gdo-up.timer"));
    assert!(service.contains("gdo --root / up --quiet --reboot\n"), "{service}");
    assert!(timer.contains("OnUnitActiveSec=30min\nRandomizedDelaySec=5min\n"), "{timer}");
    let enabled = world.sh("readlink -f r/etc/systemd/system/timers.target.wants/gdo-up.timer");
    assert!(enabled.trim().ends_with("r/etc/systemd/system/gdo-up.timer"), "{enabled}");
    assert_eq!(gdo(&["schedule", "--cron", "--every", "180"]).code, 0);
    assert!(world.read("r/etc/cron.d/gdo-up").contains("\n17 */3 * * * root sleep $(shuf -i 0-900 -n 1); "));
    // What a person wrote stays.
    world.sh("rm r/etc/systemd/system/gdo-up.timer; echo mine > r/etc/systemd/system/gdo-up.timer");
    let refused = gdo(&["schedule"]);
    assert!(refused.code == 10 && refused.err.contains("move it away"), "{}", refused.err);
    assert_eq!(gdo(&["schedule", "--remove"]).code, 0);
    assert_eq!(world.read("r/etc/systemd/system/gdo-up.timer"), "mine\n");
    assert!(!world.exists("r/etc/cron.d/gdo-up") && !world.exists("r/etc/systemd/system/gdo-up.service"));
    assert_eq!(gdo(&["schedule", "--remove"]).code, 9);
}
