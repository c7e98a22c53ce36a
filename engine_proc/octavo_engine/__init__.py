"""The engine process of octavo: continuous batching over a paged KV cache. Applications use the package `octavo`."""
