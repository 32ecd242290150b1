/* Loads a SavedModel as a server does, without Python, and answers requests.

   serve MODEL REPEATS JOB...

   XLA is switched off, as stock TensorFlow Serving has it, unless ALLOW_XLA is in the environment.
   A job is a text file, a line for each tensor of a signature:

   input  OPERATION INDEX TYPE FILE RANK SIZE...
   output OPERATION INDEX FILE

   TYPE is a number of TF_DataType; the files hold raw numbers. For every output its type, rank and
   sizes are printed, and after each job the median duration of a run in microseconds.  */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tensorflow/c/c_api.h"

/* tensorflow::DisableXlaCompilation() of tensorflow/compiler/jit/flags.h: what the server calls
   unless it was started with --xla_cpu_compilation_enabled.  */
extern void _ZN10tensorflow21DisableXlaCompilationEv(void);

enum { MOST = 8 };

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void check(const char *what, TF_Status *status) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

static TF_Output find(TF_Graph *graph, const char *operation, int index) {
  TF_Output output = {TF_GraphOperationByName(graph, operation), index};
  if (output.oper == NULL) fail("no such operation", operation);
  return output;
}

static TF_Tensor *read_tensor(FILE *job, int type, const char *path) {
  int rank;
  int64_t sizes[MOST], count = 1;
  if (fscanf(job, "%d", &rank) != 1 || rank > MOST) fail("bad rank", path);
  for (int i = 0; i < rank; i++) {
    if (fscanf(job, "%ld", &sizes[i]) != 1) fail("bad size", path);
    count *= sizes[i];
  }
  TF_Tensor *tensor =
      TF_AllocateTensor((TF_DataType)type, sizes, rank, count * TF_DataTypeSize((TF_DataType)type));
  FILE *file = fopen(path, "rb");
  if (file == NULL) fail("cannot read", path);
  size_t size = TF_TensorByteSize(tensor);
  if (fread(TF_TensorData(tensor), 1, size, file) != size) fail("too short", path);
  fclose(file);
  return tensor;
}

static void write_tensor(const TF_Tensor *tensor, const char *path) {
  FILE *file = fopen(path, "wb");
  if (file == NULL) fail("cannot write", path);
  fwrite(TF_TensorData(tensor), 1, TF_TensorByteSize(tensor), file);
  fclose(file);
  printf("output %d %d", (int)TF_TensorType(tensor), TF_NumDims(tensor));
  for (int i = 0; i < TF_NumDims(tensor); i++) printf(" %ld", (long)TF_Dim(tensor, i));
  printf("\n");
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

static void answer(TF_Session *session, TF_Graph *graph, const char *job_path, int repeats) {
  TF_Status *status = TF_NewStatus();
  TF_Output inputs[MOST], outputs[MOST];
  TF_Tensor *given[MOST], *answers[MOST];
  char paths[MOST][1024], kind[16], operation[512], path[1024];
  int num_inputs = 0, num_outputs = 0, index, type;
  FILE *job = fopen(job_path, "r");
  if (job == NULL) fail("cannot read", job_path);
  while (fscanf(job, "%15s %511s %d", kind, operation, &index) == 3) {
    if (num_inputs == MOST || num_outputs == MOST) fail("too many tensors", job_path);
    if (strcmp(kind, "input") == 0) {
      if (fscanf(job, "%d %1023s", &type, path) != 2) fail("bad input", operation);
      inputs[num_inputs] = find(graph, operation, index);
      given[num_inputs++] = read_tensor(job, type, path);
    } else {
      if (fscanf(job, "%1023s", paths[num_outputs]) != 1) fail("bad output", operation);
      outputs[num_outputs++] = find(graph, operation, index);
    }
  }
  fclose(job);

  double *durations = malloc(sizeof(double) * (size_t)repeats);
  for (int i = 0; i < repeats; i++) {
    double begin = now();
    TF_SessionRun(session, NULL, inputs, given, num_inputs, outputs, answers, num_outputs, NULL, 0,
                  NULL, status);
    check("running", status);
    durations[i] = now() - begin;
    for (int k = 0; k < num_outputs; k++) {
      if (i == repeats - 1) write_tensor(answers[k], paths[k]);
      TF_DeleteTensor(answers[k]);
    }
  }
  qsort(durations, (size_t)repeats, sizeof(double), by_size);
  printf("median %.1f\n", durations[repeats / 2]);
}

int main(int argc, char **argv) {
  if (argc < 4) fail("usage", "serve MODEL REPEATS JOB...");
  if (getenv("ALLOW_XLA") == NULL) _ZN10tensorflow21DisableXlaCompilationEv();
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  TF_Session *session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check("loading", status);
  for (int i = 3; i < argc; i++) answer(session, graph, argv[i], atoi(argv[2]));
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteGraph(graph);
  return 0;
}
