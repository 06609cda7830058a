//! A device that shows what the transport and the loop do to it.

use std::os::fd::RawFd;
use std::sync::{Arc, Barrier, Mutex};

use super::lock;
use crate::virtio::{
    Activation, Chain, ConfigSpace, Device, Interest, Interrupt, VirtQueue, Watch,
};

/// What a test knows and decides of an [`Echo`], which it shares with it.
#[derive(Clone, Default)]
pub struct Probe {
    events: Arc<Mutex<Vec<String>>>,
    refuse: Arc<Mutex<Option<String>>>,
    watch: Arc<Mutex<Option<(RawFd, u32)>>>,
    gate: Arc<Mutex<Option<Arc<Barrier>>>>,
    interrupt: Arc<Mutex<Option<Arc<dyn Interrupt>>>>,
}

impl Probe {
    /// What happened since the last call: `activate …`, `kick 0`, `event …`, `reset`.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.events))
    }

    /// Makes activations fail with `reason`, or succeed again.
    pub fn refuse(&self, reason: Option<&str>) {
        *lock(&self.refuse) = reason.map(str::to_owned);
    }

    /// Makes the next activation watch `fd` for reading.
    pub fn watch(&self, fd: RawFd, token: u32) {
        *lock(&self.watch) = Some((fd, token));
    }

    /// Makes the next request wait at `gate` twice: when it was taken from the queue, and before it is served.
    pub fn hold(&self, gate: &Arc<Barrier>) {
        *lock(&self.gate) = Some(Arc::clone(gate));
    }

    /// The interrupt the device got with its last activation.
    pub fn interrupt(&self) -> Option<Arc<dyn Interrupt>> {
        lock(&self.interrupt).clone()
    }

    fn record(&self, event: String) {
        lock(&self.events).push(event);
    }
}

/// Copies what is readable of a buffer to what is writable. Two queues, of at most 8 and 4 entries; feature bit 5;
/// 12 bytes of configuration space, 1 to 12, of which the driver may write the second 4.
pub struct Echo {
    probe: Probe,
    config: Arc<ConfigSpace>,
    queues: Vec<Option<VirtQueue>>,
    chain: Chain,
    watched: Option<RawFd>,
}

impl Echo {
    /// Feature bits of the device itself.
    pub const FEATURES: u64 = 1 << 5;

    /// A device and the probe in it.
    pub fn new() -> (Box<Self>, Probe) {
        let probe = Probe::default();
        let device = Self {
            probe: probe.clone(),
            config: Arc::new(ConfigSpace::new(
                &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
                4..8,
            )),
            queues: Vec::new(),
            chain: Chain::default(),
            watched: None,
        };
        (Box::new(device), probe)
    }
}

impl Device for Echo {
    fn id(&self) -> u32 {
        42
    }

    fn name(&self) -> &str {
        "echo"
    }

    fn features(&self) -> u64 {
        Self::FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 4]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn activate(&mut self, activation: Activation, watch: &mut dyn Watch) -> Result<(), String> {
        let Activation {
            features,
            queues,
            interrupt,
            memory: _,
        } = activation;
        let sizes: Vec<u16> = queues
            .iter()
            .map(|q| q.as_ref().map_or(0, VirtQueue::size))
            .collect();
        self.probe
            .record(format!("activate {features:#x} {sizes:?}"));
        *lock(&self.probe.interrupt) = Some(interrupt);
        if let Some(reason) = lock(&self.probe.refuse).clone() {
            return Err(reason);
        }
        if let Some((fd, token)) = lock(&self.probe.watch).take() {
            let interest = Interest {
                readable: true,
                writable: false,
            };
            watch
                .watch(fd, token, interest)
                .map_err(|e| e.to_string())?;
            self.watched = Some(fd);
        }
        self.queues = queues;
        Ok(())
    }

    fn kick(&mut self, index: u16, _watch: &mut dyn Watch) {
        self.probe.record(format!("kick {index}"));
        let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        queue.suppress();
        loop {
            while queue.pop(&mut self.chain) {
                if let Some(gate) = lock(&self.probe.gate).take() {
                    gate.wait();
                    gate.wait();
                }
                let mut data = vec![0; self.chain.readable_len() as usize];
                queue.read_from(&self.chain.readable, 0, &mut data);
                let written = queue.write_to(&self.chain.writable, 0, &data);
                queue.push(self.chain.head, written as u32);
            }
            queue.notify();
            if !queue.rearm() {
                return;
            }
        }
    }

    fn event(&mut self, token: u32, ready: Interest, hangup: bool, watch: &mut dyn Watch) {
        self.probe.record(format!(
            "event {token} {} {} {hangup}",
            ready.readable, ready.writable
        ));
        if let Some(fd) = self.watched.take() {
            watch.unwatch(fd);
        }
    }

    fn reset(&mut self, watch: &mut dyn Watch) {
        self.probe.record("reset".to_owned());
        self.queues.clear();
        if let Some(fd) = self.watched.take() {
            watch.unwatch(fd);
        }
    }
}
