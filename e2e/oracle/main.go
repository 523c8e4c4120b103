// What Kubernetes' own API server says to manifests: its decoder, its defaults and its validation, without the server.
//
//	oracle MANIFEST...        a line a document's error: FILE#DOCUMENT: sentence
//	oracle -d MANIFEST...     the objects with their defaults, as YAML
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	internalapps "k8s.io/kubernetes/pkg/apis/apps"
	appsinstall "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	internalbatch "k8s.io/kubernetes/pkg/apis/batch"
	batchinstall "k8s.io/kubernetes/pkg/apis/batch/install"
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	internal "k8s.io/kubernetes/pkg/apis/core"
	coreinstall "k8s.io/kubernetes/pkg/apis/core/install"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/capabilities"
	sigsyaml "sigs.k8s.io/yaml"
)

func main() {
	defaults := flag.Bool("d", false, "print the objects with their defaults")
	flag.Parse()
	// Every cluster that runs its own network does.
	capabilities.Setup(true, 0)
	scheme := runtime.NewScheme()
	coreinstall.Install(scheme)
	appsinstall.Install(scheme)
	batchinstall.Install(scheme)
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for _, path := range flag.Args() {
		file, err := os.Open(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		reader := yaml.NewYAMLReader(bufio.NewReader(file))
		for document := 1; ; document++ {
			text, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if len(bytes.TrimSpace(text)) == 0 {
				document--
				continue
			}
			for _, line := range look(scheme, codecs, text, *defaults) {
				if *defaults {
					fmt.Fprintf(out, "---\n%s", line)
				} else {
					fmt.Fprintf(out, "%s#%d: %s\n", filepath.Base(path), document, line)
				}
			}
		}
		file.Close()
	}
}

func look(scheme *runtime.Scheme, codecs serializer.CodecFactory, text []byte, defaults bool) []string {
	// What begins with a brace would be taken for JSON.
	text, err := sigsyaml.YAMLToJSONStrict(text)
	if err != nil {
		return []string{err.Error()}
	}
	object, kind, err := codecs.UniversalDeserializer().Decode(text, nil, nil)
	if err != nil {
		return []string{err.Error()}
	}
	if meta, ok := object.(metav1.Object); ok && meta.GetNamespace() == "" {
		meta.SetNamespace("default")
	}
	scheme.Default(object)
	if defaults {
		object.GetObjectKind().SetGroupVersionKind(*kind)
		text, err := sigsyaml.Marshal(object)
		if err != nil {
			return []string{err.Error()}
		}
		return []string{string(text)}
	}
	errs, err := validate(scheme, object)
	if err != nil {
		return []string{err.Error()}
	}
	var lines []string
	for _, wrong := range errs {
		lines = append(lines, wrong.Error())
	}
	return lines
}

// What each kind's strategy in pkg/registry does on creation.
func validate(scheme *runtime.Scheme, object runtime.Object) (field.ErrorList, error) {
	to := func(into runtime.Object) error { return scheme.Convert(object, into, nil) }
	switch object.(type) {
	case *core.Pod:
		pod := &internal.Pod{}
		if err := to(pod); err != nil {
			return nil, err
		}
		options := podutil.GetValidationOptionsFromPodSpecAndMeta(&pod.Spec, nil, &pod.ObjectMeta, nil)
		options.ResourceIsPod = true
		return validation.ValidatePodCreate(pod, options), nil
	case *core.ConfigMap:
		into := &internal.ConfigMap{}
		if err := to(into); err != nil {
			return nil, err
		}
		return validation.ValidateConfigMap(into), nil
	case *core.Secret:
		into := &internal.Secret{}
		if err := to(into); err != nil {
			return nil, err
		}
		return validation.ValidateSecret(into), nil
	case *core.PersistentVolumeClaim:
		into := &internal.PersistentVolumeClaim{}
		if err := to(into); err != nil {
			return nil, err
		}
		return validation.ValidatePersistentVolumeClaim(into, validation.ValidationOptionsForPersistentVolumeClaim(into, nil)), nil
	case *core.Service:
		into := &internal.Service{}
		if err := to(into); err != nil {
			return nil, err
		}
		return validation.ValidateServiceCreate(into), nil
	case *batch.Job:
		into := &internalbatch.Job{}
		if err := to(into); err != nil {
			return nil, err
		}
		// As generateSelector of the job's strategy has it.
		if into.Spec.ManualSelector == nil || !*into.Spec.ManualSelector {
			into.UID = "00000000-0000-0000-0000-000000000000"
			labels := map[string]string{
				internalbatch.LegacyJobNameLabel: into.Name, internalbatch.JobNameLabel: into.Name,
				internalbatch.LegacyControllerUidLabel: string(into.UID), internalbatch.ControllerUidLabel: string(into.UID),
			}
			if into.Spec.Template.Labels == nil {
				into.Spec.Template.Labels = map[string]string{}
			}
			for key, value := range labels {
				into.Spec.Template.Labels[key] = value
			}
			if into.Spec.Selector == nil {
				into.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{internalbatch.ControllerUidLabel: string(into.UID)}}
			}
		}
		return batchvalidation.ValidateJobCreate(into, batchvalidation.JobValidationOptions{
			PodValidationOptions: podutil.GetValidationOptionsFromPodTemplate(&into.Spec.Template, nil), RequirePrefixedLabels: true,
		}), nil
	case *batch.CronJob:
		into := &internalbatch.CronJob{}
		if err := to(into); err != nil {
			return nil, err
		}
		return batchvalidation.ValidateCronJobCreate(into, podutil.GetValidationOptionsFromPodTemplate(&into.Spec.JobTemplate.Spec.Template, nil)), nil
	case *apps.Deployment:
		into := &internalapps.Deployment{}
		if err := to(into); err != nil {
			return nil, err
		}
		return appsvalidation.ValidateDeployment(into, podutil.GetValidationOptionsFromPodTemplate(&into.Spec.Template, nil)), nil
	case *apps.ReplicaSet:
		into := &internalapps.ReplicaSet{}
		if err := to(into); err != nil {
			return nil, err
		}
		return appsvalidation.ValidateReplicaSet(into, podutil.GetValidationOptionsFromPodTemplate(&into.Spec.Template, nil)), nil
	case *apps.DaemonSet:
		into := &internalapps.DaemonSet{}
		if err := to(into); err != nil {
			return nil, err
		}
		return appsvalidation.ValidateDaemonSet(into, podutil.GetValidationOptionsFromPodTemplate(&into.Spec.Template, nil)), nil
	case *apps.StatefulSet:
		into := &internalapps.StatefulSet{}
		if err := to(into); err != nil {
			return nil, err
		}
		return appsvalidation.ValidateStatefulSet(into, appsvalidation.StatefulSetValidationOptions{}, podutil.GetValidationOptionsFromPodTemplate(&into.Spec.Template, nil)), nil
	}
	return nil, fmt.Errorf("%T: not asked about", object)
}
