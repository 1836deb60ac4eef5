"""Runs on Kubernetes: the only room that knows the Kubernetes client."""
