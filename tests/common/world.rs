//! A host as an ordinary user has it: a uid without capabilities, whose only privilege is the group of /dev/kvm. In a
//! mount namespace with a /dev, /run and /tmp of its own.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::common::process::Running;
use super::common::{expect_code, finish, have_kvm, kernel, run, text};
use super::inside;

/// The group of /dev/kvm in there. No line of /etc/group names it.
pub const KVM: u32 = 9999;
/// Without a file that says that this is a container, and with what users have: `$0` is the program, `$1` the kernels,
/// then come the users.
const WORLD: &str = r#"
mount --make-rprivate /
mount -t tmpfs -o mode=755 t /mnt
mkdir /mnt/bin /mnt/kernels /mnt/dev /mnt/root
cp "$0" /mnt/bin/vsc-run; cp "${0%-run}-helper" /mnt/bin/vsc-helper; chmod 755 /mnt/bin/*
[ -z "$1" ] || mount --bind "$1" /mnt/kernels
for n in null zero full random urandom; do mknod -m 666 /mnt/dev/$n c $(stat -c '0x%t 0x%T' /dev/$n); done
mkdir -m 1777 /mnt/dev/shm; ln -s /proc/self/fd /mnt/dev/fd
mknod -m 660 /mnt/dev/kvm c 10 232; chown 0:9999 /mnt/dev/kvm
mount -t tmpfs -o mode=755 t /mnt/root
cd /mnt/root
for d in /*; do
    if [ -L "$d" ]; then cp -a "$d" .; elif [ -d "$d" ]; then mkdir ".$d"; mount --rbind "$d" ".$d"; fi
done
mkdir old; pivot_root . old; cd /; umount -l /old; rmdir /old
mount --rbind /mnt/dev /dev
mount -t tmpfs -o mode=755 t /run; mount -t tmpfs -o mode=1777 t /tmp; mkdir /run/user
for n in me:$2 them:$3; do install -d -m 700 -o ${n#*:} -g ${n#*:} /run/user/${n#*:} /tmp/${n%:*}; done
"#;

/// A user whose number no other test has: processes are the host's.
pub fn me() -> u32 {
    100_000 + 2 * std::process::id()
}

/// Another one.
pub fn them() -> u32 {
    me() + 1
}

/// Where what belongs to this user's session is.
pub fn runtime(user: u32) -> String {
    format!("/run/user/{user}")
}

pub struct World;

impl World {
    /// `None`: this is not the process inside, or there is no inside to be had.
    #[track_caller]
    pub fn new(test: &str) -> Option<Self> {
        let probe = "mount -t tmpfs t /mnt; mknod -m 660 /mnt/kvm c 10 232; chown 0:9999 /mnt/kvm; \
                     setpriv --reuid 12345 --regid 12345 --groups 9999 sh -c ': <>/mnt/kvm'";
        if !have_kvm() || !inside::inside(test, "-m", probe) {
            return None;
        }
        let kernels = kernel().and_then(|path| Some(path.parent()?.to_owned()));
        let mut setup = Command::new("sh");
        setup.args(["-ec", WORLD, env!("CARGO_BIN_EXE_vsc-run")]);
        setup.arg(kernels.unwrap_or_default());
        let output = run(setup.args([me(), them()].map(|user| user.to_string())));
        expect_code(&output, 0);
        Some(Self)
    }

    pub fn home(user: u32) -> PathBuf {
        match user == me() {
            true => "/tmp/me".into(),
            false => "/tmp/them".into(),
        }
    }

    /// A program as this user; `groups` besides their own.
    pub fn command(user: u32, groups: &[u32], program: &[&str]) -> Command {
        let mut all = vec![user.to_string()];
        all.extend(groups.iter().map(u32::to_string));
        let id = user.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--groups", &all.join(",")]);
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--"]);
        command.args(program).env_clear().stdin(Stdio::null());
        command.current_dir(Self::home(user));
        command.env("PATH", "/mnt/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .env("HOME", Self::home(user))
            .env("VSC_KERNELS", "/mnt/kernels");
        command.env("XDG_RUNTIME_DIR", runtime(user));
        command
    }

    pub fn vsc(&self, user: u32, arguments: &[&str]) -> Command {
        let mut command = Self::command(user, &[KVM], &["vsc-run"]);
        command.args(arguments);
        command
    }

    /// What it said on standard error and output, if it ended so.
    #[track_caller]
    pub fn expect(&self, command: &mut Command, code: i32) -> String {
        let output = run(command);
        expect_code(&output, code);
        text(&output.stderr) + &text(&output.stdout)
    }

    #[track_caller]
    pub fn ada(&self, arguments: &[&str], code: i32) -> String {
        self.expect(&mut self.vsc(me(), arguments), code)
    }

    /// Everything in it, none of it left out.
    #[track_caller]
    pub fn says(&self, arguments: &[&str], code: i32, parts: &[&str]) {
        contains(&self.ada(arguments, code), parts);
    }

    /// A file of this user's.
    pub fn file(&self, user: u32, name: &str, mode: u32, bytes: &[u8]) -> String {
        let path = PathBuf::from("/tmp").join(name);
        fs::write(&path, bytes).unwrap();
        chown(&path, Some(user), Some(user)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A machine that runs until it is killed, and has greeted.
    pub fn machine(&self, user: u32, arguments: &[&str]) -> Running {
        let mut command = self.vsc(user, &["-q", "-o", "guest.parameters=test=none spin"]);
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut greeting = [0; 10];
        if child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut greeting)
            .is_err()
        {
            panic!("{}", text(&finish(child).stderr));
        }
        Running(child)
    }
}

#[track_caller]
pub fn contains(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

/// All names below a directory.
pub fn below(directory: &str) -> Vec<String> {
    let output = run(Command::new("find").args([directory, "-mindepth", "1"]));
    text(&output.stdout).lines().map(str::to_owned).collect()
}
