//! Where devices run: on an event loop, woken by kicks and by the descriptors they watch.
