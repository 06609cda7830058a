//! KVM's own counters of a vCPU (KVM_GET_STATS_FD, Documentation/virt/kvm/api.rst 4.133).

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileExt;

/// `_IO(KVMIO, 0xce)`, include/uapi/linux/kvm.h.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Largest header, descriptor table or name that is believed.
const SANE: u32 = 1 << 16;

/// An open statistics file of one vCPU.
#[derive(Debug)]
pub struct VcpuStats(File);

impl VcpuStats {
    pub(super) fn open(vcpu: RawFd) -> io::Result<Self> {
        // SAFETY: an ioctl without argument on a descriptor that the caller keeps open.
        let fd = unsafe { libc::ioctl(vcpu, KVM_GET_STATS_FD) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// All scalar counters: (name, value).
    ///
    /// # Errors
    /// The system's reason, or `InvalidData` for a table that makes no sense.
    pub fn read(&self) -> io::Result<Vec<(String, u64)>> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let mut header = [0u8; 24];
        self.0.read_exact_at(&mut header, 0)?;
        let word =
            |i: usize| u32::from_ne_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let (name_size, count, desc_at, data_at) = (word(4), word(8), word(16), word(20));
        if name_size > SANE || count > SANE {
            return Err(bad());
        }
        let stride = 16 + name_size as usize;
        let mut table = vec![0u8; stride.checked_mul(count as usize).ok_or_else(bad)?];
        self.0.read_exact_at(&mut table, desc_at.into())?;
        let mut counters = Vec::with_capacity(count as usize);
        for d in table.chunks_exact(stride) {
            let size = u16::from_ne_bytes([d[6], d[7]]);
            if size != 1 {
                continue;
            }
            let offset = u32::from_ne_bytes([d[8], d[9], d[10], d[11]]);
            let name = d[16..].split(|&b| b == 0).next().unwrap_or_default();
            let mut value = [0u8; 8];
            self.0
                .read_exact_at(&mut value, u64::from(data_at) + u64::from(offset))?;
            counters.push((
                String::from_utf8_lossy(name).into_owned(),
                u64::from_ne_bytes(value),
            ));
        }
        Ok(counters)
    }
}
