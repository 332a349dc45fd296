#!/bin/sh
# MLflow 3.17 quotes each word for a shell, and a Job's command runs without one: `-P data='my file'`
# would arrive with its quotes. This is that shell.
eval "exec $*"
