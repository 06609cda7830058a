//! From whatever whoever started this program left it with, to a process that has CAP_NET_ADMIN and nothing else.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getgid, getgroups, getuid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use vsc::net::policy::Who;

/// How long the program may live, seconds.
const LIFETIME: u32 = 10;

/// Why there is nothing to be done with these rights.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegeError {
    /// It has none.
    #[error(
        "it has no CAP_NET_ADMIN; root gives it: setcap cap_net_admin+ep vsc-helper (or chown root and chmod u+s), or \
         start it by sudo"
    )]
    None,
    /// The system refused.
    #[error("cannot {action}: {error}")]
    System {
        action: &'static str,
        #[source]
        error: io::Error,
    },
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> PrivilegeError {
    move |error| PrivilegeError::System {
        action,
        error: error.into(),
    }
}

/// Gives up all rights but one, and everything that was inherited; says who asks.
///
/// # Errors
/// [`PrivilegeError`]
pub(crate) fn settle() -> Result<Who, PrivilegeError> {
    forget_signals();
    close_others().map_err(system("close what was inherited"))?;
    let who = who();
    forget_environment();
    std::env::set_current_dir("/").map_err(system("leave the directory"))?;
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, nothing).map_err(system("forbid core dumps"))?;

    let have = rustix::thread::capabilities(None).map_err(system("ask for my rights"))?;
    if !have.permitted.contains(CapabilitySet::NET_ADMIN) {
        return Err(PrivilegeError::None);
    }
    if have.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter() {
            // A kernel that does not know one has none of it.
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    // With setuid, the rights would go with the user.
    rustix::thread::set_keep_capabilities(true).map_err(system("keep one right"))?;
    let (user, group) = (getuid(), getgid());
    rustix::thread::set_thread_res_gid(group, group, group).map_err(system("be of one group"))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(system("be one user"))?;
    rustix::thread::set_keep_capabilities(false).map_err(system("keep one right"))?;
    let one = CapabilitySets {
        effective: CapabilitySet::NET_ADMIN,
        permitted: CapabilitySet::NET_ADMIN,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, one).map_err(system("give up rights"))?;
    rustix::thread::set_no_new_privs(true).map_err(system("give up new rights"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(system("be looked at by nobody"))?;
    Ok(who)
}

/// Who asks: the user who started this. Of sudo and pkexec, which have asked that user already, it is root who starts
/// it, and they say for whom; the word of nobody else is taken for that.
fn who() -> Who {
    let user = getuid();
    if user.is_root() {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
        if let Some(user) = number("SUDO_UID").or_else(|| number("PKEXEC_UID")) {
            return Who {
                user,
                groups: number("SUDO_GID").into_iter().collect(),
            };
        }
    }
    let groups = getgroups().unwrap_or_default();
    Who {
        user: user.as_raw(),
        groups: groups
            .into_iter()
            .chain([getgid()])
            .map(|group| group.as_raw())
            .collect(),
    }
}

/// No signal is blocked or ignored, and one comes when the time is over.
fn forget_signals() {
    // SAFETY: all-zero is a valid set, here the empty one; the default actions need no handler; plain system calls
    // otherwise.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        for signal in [libc::SIGALRM, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::alarm(LIFETIME);
    }
}

/// Closes all descriptors but the three standard streams, which the runtime has made sure to be open.
fn close_others() -> io::Result<()> {
    // SAFETY: nothing in this process owns a descriptor yet.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    // Linux before 5.9.
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    for fd in 3..i32::try_from(most.unwrap_or(1 << 20)).unwrap_or(1 << 20) {
        // SAFETY: as above; a number that is no descriptor is an error that says so.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

fn forget_environment() {
    // SAFETY: this process has one thread.
    unsafe { libc::clearenv() };
}
