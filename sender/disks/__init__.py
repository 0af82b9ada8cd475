"""Send the disks of the guest as a source: a process of their own scans them, round by round."""
