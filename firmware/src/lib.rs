//! What a guest starts from: kernels, command lines, boot tables, initrds, the built-in guest.
//!
//! Knows neither devices nor KVM: everything here turns bytes and plain data into bytes and plain data.

pub mod init;
